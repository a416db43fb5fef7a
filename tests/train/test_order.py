"""Whether the records and the flags make any batch is known before a model is loaded, with the numbers."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import llava.train.train as command
from llava.errors import InputError
from llava.train.flags.dry_run import One, OneRecord
from llava.train.flags.parsing import parse_arguments
from llava.train.llava_trainer import LLaVATrainer
from llava.train.order import check_batches

Flags = Callable[..., list[str]]
GROUPED = ("group_by_length", "group_by_modality_length", "group_by_modality_length_auto", "group_by_varlen")


class Records(OneRecord):
    """So many records with a picture, and so many without."""

    def __init__(self, pictures: int, texts: int) -> None:
        self.lengths = [7] * (pictures + texts)
        self.modality_lengths = [7] * pictures + [-7] * texts
        self.answers = ["yes", "no"] * (pictures + texts)

    def __len__(self) -> int:
        return len(self.lengths)


@settings(max_examples=30, deadline=None)
@given(
    pictures=st.integers(0, 12),
    texts=st.integers(0, 12),
    batch=st.integers(1, 5),
    accumulation=st.integers(1, 3),
    drop=st.booleans(),
    order=st.sampled_from(["", *GROUPED]),
)
def test_refused_where_the_loader_of_the_run_is_empty(
    tmp_path_factory: Any, pictures: int, texts: int, batch: int, accumulation: int, drop: bool, order: str
) -> None:
    dataset = Records(pictures, texts)
    words = ["--data_path", "x.json", "--output_dir", str(tmp_path_factory.getbasetemp() / "unused")]
    words += ["--per_device_train_batch_size", str(batch), "--gradient_accumulation_steps", str(accumulation)]
    words += ["--dataloader_drop_last", str(drop), *([f"--{order}"] if order else []), "--report_to", "none"]
    *_, args = parse_arguments(words)
    if len(dataset) == 0:  # make_supervised_data_module says so
        return
    model: Any = One()
    loader = LLaVATrainer(model=model, args=args, train_dataset=dataset).get_train_dataloader()
    try:
        check_batches(dataset, args, processes=1)
        refused = False
    except InputError:
        refused = True
    assert refused == (len(loader) == 0)


@pytest.mark.parametrize("processes, refused", [(1, False), (2, False), (3, True)])
def test_processes_share_the_records(processes: int, refused: bool) -> None:
    none = dict.fromkeys(GROUPED, False) | {"stratify_answers": "off", "trainer_mode": "regular"}
    sizes = {"train_batch_size": 4, "per_device_train_batch_size": 4, "gradient_accumulation_steps": 1}
    config = SimpleNamespace(split_batches=False)
    args = SimpleNamespace(**none, **sizes, dataloader_drop_last=True, accelerator_config=config)
    if refused:
        with pytest.raises(
            InputError, match=r"8 records make no full batch of --per_device_train_batch_size 4 x 3 processes"
        ):
            check_batches(Records(8, 0), args, processes)
    else:
        check_batches(Records(8, 0), args, processes)


@pytest.mark.parametrize("mode", ["zo", "regular"])
@pytest.mark.parametrize(
    "changes, parts",
    [
        (
            {"dataloader_drop_last": True, "per_device_train_batch_size": 7},
            ["6 records", "--per_device_train_batch_size 7 x 1", "--dataloader_drop_last False"],
        ),
        (
            {"group_by_modality_length_auto": True, "per_device_train_batch_size": 4, "max_steps": 5},
            ["0 of 6 records", "--group_by_modality_length_auto True", "--group_by_modality_length_auto False"],
        ),
        ({"data_path": "empty.json"}, ["empty.json", "no records"]),
        ({"data_path": "x" * 5000}, ["--data_path", "too long"]),
        ({"model_name_or_path": "x" * 5000}, ["--model_name_or_path", "too long"]),
        ({"output_dir": "x" * 5000}, ["--output_dir", "too long"]),
        ({"resume_from_checkpoint": "x" * 5000}, ["--resume_from_checkpoint", "too long"]),
        ({"data_path": "broken.json"}, ["broken.json", "line 1"]),
        ({"data_path": "broken.json", "skip_bad_samples": True}, ["broken.json", "line 1"]),
    ],
)
def test_a_run_that_would_train_nothing_loads_nothing(
    mode: str,
    changes: dict[str, Any],
    parts: list[str],
    flags: Flags,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    refused: Callable[..., str],
) -> None:
    turns = [{"from": "human", "value": "Say yes."}, {"from": "gpt", "value": "yes"}]
    records = [{"conversations": turns, **({"image": "a.png"} if number < 3 else {})} for number in range(6)]
    (tmp_path / "six.json").write_text(json.dumps(records))
    (tmp_path / "empty.json").write_text("[]")
    (tmp_path / "broken.json").write_text("[{]")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(command, "build", lambda *args: pytest.fail("the model was loaded"))
    line = refused(
        command.train, argv=flags(**{"trainer_mode": mode, "data_path": "six.json", "bf16": None} | changes)
    ).splitlines()[-1]
    assert all(part in line for part in parts), line
    assert not (tmp_path / "out").exists()
