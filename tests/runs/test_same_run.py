"""Whether an unfinished run may be gone on with: which differences count, and how they are told and recorded."""

from __future__ import annotations

import hashlib
import json
import re
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest

from llava.errors import InputError
from llava.mezo.config import MeZOConfig
from llava.model.base_mark import BASE_SHA256
from llava.runs import same_run
from llava.runs.same_run import DATA, check_same_run, hashes
from llava.train.flags.arguments import DataArguments, ModelArguments, TrainingArguments
from llava.train.zo.settings import flag_of

BEGUN: dict[str, Any] = {"learning_rate": 1e-6, "data_path": "a.json", DATA: ["00"], BASE_SHA256: "ab", "seed": 0}
BEGUN |= {"trainer_mode": "zo"}


@pytest.fixture()
def checkpoint(tmp_path: Path) -> Path:
    (tmp_path / "training_args.json").write_text(json.dumps(BEGUN))
    return tmp_path


def test_the_same_run_and_what_decides_nothing(checkpoint: Path, caplog: pytest.LogCaptureFixture) -> None:
    assert check_same_run(checkpoint, BEGUN, 3, changes=False) == []
    moved = {"data_path": "elsewhere/a.json", "save_steps": 7, "a_flag_of_later": 1}
    assert check_same_run(checkpoint, BEGUN | moved, 3, changes=False) == []
    assert not caplog.records


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"learning_rate": 1e-5}, r"--learning_rate 1e-06 \(now 1e-05\)"),
        ({DATA: ["01"]}, "other records in --data_path"),
        ({DATA: ["00", "01"]}, "other records"),
        ({BASE_SHA256: "cd"}, "other weights in --model_name_or_path"),
        ({"seed": 1, "learning_rate": 0.0}, r"--learning_rate 1e-06 \(now 0.0\), --seed 0 \(now 1\)"),
    ],
)
def test_changes_are_refused_unless_wanted_and_then_recorded(
    change: dict[str, Any], told: str, checkpoint: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with pytest.raises(InputError, match=told + r".*--resume_with_changes True.*--overwrite_output_dir"):
        check_same_run(checkpoint, BEGUN | change, 3, changes=False)
    (recorded,) = check_same_run(checkpoint, BEGUN | change, 3, changes=True)
    assert recorded == {"after_step": 3, "flags": {name: [BEGUN[name], value] for name, value in change.items()}}
    assert "from step 4 on" in caplog.text


def test_changes_of_before_are_kept(checkpoint: Path) -> None:
    earlier = {"after_step": 1, "flags": {"seed": [3, 0]}}
    (checkpoint / "training_args.json").write_text(json.dumps(BEGUN | {"changes": [earlier]}))
    assert check_same_run(checkpoint, BEGUN, 5, changes=False) == [earlier]
    assert check_same_run(checkpoint, BEGUN | {"seed": 4}, 5, changes=True) == [
        earlier,
        {"after_step": 5, "flags": {"seed": [0, 4]}},
    ]


def test_another_method_is_another_run(checkpoint: Path) -> None:
    with pytest.raises(InputError, match=r"--trainer_mode zo \(now regular\): choose another --output_dir"):
        check_same_run(checkpoint, BEGUN | {"trainer_mode": "regular"}, 3, changes=True)


def test_hashes_are_of_the_contents(tmp_path: Path) -> None:
    for name, content in (("a", b"x" * 3_000_000), ("b", b"")):
        (tmp_path / name).write_bytes(content)
    files = [tmp_path / "a", tmp_path / "b"]
    assert hashes(files) == [hashlib.sha256(file.read_bytes()).hexdigest() for file in files]


def test_patterns_name_flags_and_leave_what_decides() -> None:
    flags = {one.name for kind in (ModelArguments, DataArguments, TrainingArguments) for one in fields(kind)}
    flags |= {"dataset_paths"}
    for pattern in f"{same_run.WITHOUT_EFFECT.pattern}|{same_run.OF_ROUNDING.pattern}".split("|"):
        assert any(re.fullmatch(pattern.strip(), name) for name in flags), pattern
    equal_results = {"kernel", "check_ranks_steps"}
    decisive = {flag_of(one.name) for one in fields(MeZOConfig) if one.name not in equal_results}
    decisive |= {
        "learning_rate",
        "weight_decay",
        "seed",
        "bf16",
        "max_steps",
        "lr_scheduler_type",
        "image_aspect_ratio",
    }
    decisive |= {"per_device_train_batch_size", "gradient_accumulation_steps", "dataloader_drop_last", "version"}
    assert not [name for name in decisive & flags if same_run.WITHOUT_EFFECT.fullmatch(name)]
    assert len(decisive & flags) > 20
