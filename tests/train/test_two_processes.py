"""Data-parallel runs: two processes on the CPU against one that accumulates over the same samples."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import accelerate
import pytest
import torch
from finished_runs import logged_steps, report_of, same, weights
from launching import run_on_two, torchrun

from llava.train.flags.parsing import parse_arguments
from llava.train.llava_trainer import LLaVATrainer
from llava.train.train import build, train
from llava.train.zo.extended_trainer import ExtendedMeZOTrainer

Flags = Callable[..., list[str]]


def logs_of(folder: Path) -> list[tuple[float, float, float]]:
    return [(entry["loss"], entry["loss_plus"], entry["loss_minus"]) for entry in logged_steps(folder)]


@pytest.mark.slow
def test_two_processes_end_as_one_that_accumulates(small_run: Flags, tmp_path: Path) -> None:
    """Bit for bit: losses are means over both processes, of which each uses its own copy of the updated weights.

    Probes, of which each process measures a batch, change nothing.

    Both runs see the same samples in a step, since the sampler orders them by processes times accumulated batches.
    """
    launched_on_two(small_run(output_dir=tmp_path / "two", zo_probe_steps=2))
    train(argv=small_run(output_dir=tmp_path / "one", gradient_accumulation_steps=2))

    assert len(logs_of(tmp_path / "one")) == 3
    assert logs_of(tmp_path / "two") == logs_of(tmp_path / "one")
    assert same(weights(tmp_path / "two"), weights(tmp_path / "one"))

    probes = json.loads((tmp_path / "two" / "probes.json").read_text())["probes"]
    assert [(one["step"], len(one["batches"])) for one in probes] == [(0, 2), (2, 2)]
    assert probes[1]["batches"][0] != probes[1]["batches"][1]
    report = report_of(tmp_path / "two")
    assert report["probes"]["every"] == 2 and len(report["probes"]["windows"]) == 1
    assert report["projected_gradients"][0]["rms"] > 0 and "probes" not in report_of(tmp_path / "one")

    journals = [tmp_path / name / "mezo_journal" for name in ("two", "one")]
    assert len({(journal / "records.bin").read_bytes() for journal in journals}) == 1
    # stopped while the third record was being written, and started again
    shutil.copytree(journals[0], tmp_path / "again" / "mezo_journal")
    os.truncate(tmp_path / "again" / "mezo_journal" / "records.bin", 3 * 44 - 10)
    run_on_two(small_run(output_dir=tmp_path / "again"), tmp_path / "log")
    assert same(weights(tmp_path / "again"), weights(tmp_path / "one"))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("changes", "rows"),
    [
        ({"zo_batch_growth": "0:2"}, (1, 1)),
        ({"zo_estimator": "per_example", "dataloader_drop_last": True}, (1, 2)),
        ({"zo_parallel": "directions", "group_by_modality_length": True, "zo_probe_steps": 1}, (2, 2)),
        pytest.param({"zo_parallel": "both", "zo_num_directions": 4}, (2, 2), marks=pytest.mark.long),
        pytest.param({"zo_parallel": "directions", "zo_batch_growth": "0:2"}, (1, 1), marks=pytest.mark.long),
        pytest.param(
            {"zo_estimator": "guided", "zo_num_directions": 3, "zo_rule": "normalized"}, None, marks=pytest.mark.long
        ),
    ],
    ids=["growth", "per_example", "directions", "both", "directions_growth", "guided"],
)
def test_steps_in_parts_and_in_two_rounds(
    changes: dict[str, Any], rows: tuple[int, int] | None, small_run: Flags, tmp_path: Path
) -> None:
    """The records of a step are shared out; where one process does the same, it ends the same."""
    two = small_run(**changes, per_device_train_batch_size=rows[0] if rows else 1, output_dir=tmp_path / "two")
    run_on_two(two, tmp_path / "log")
    if rows is None:  # its last points follow from losses of both, which one process would have to take at once
        run_on_two(small_run(**changes, output_dir=tmp_path / "one"), tmp_path / "log")
    else:
        train(argv=small_run(**changes, per_device_train_batch_size=rows[1], output_dir=tmp_path / "one"))
    journals = [tmp_path / name / "mezo_journal" / "records.bin" for name in ("two", "one")]
    assert len({journal.read_bytes() for journal in journals}) == 1
    assert same(weights(tmp_path / "two"), weights(tmp_path / "one"))


@pytest.mark.slow
@pytest.mark.parametrize("mode", ["zo", "regular"])
def test_validation_is_shared_out(mode: str, small_run: Flags, golden: Path, tmp_path: Path) -> None:
    """Five records to two processes, which stop at the same step and keep the weights of the same one."""
    records = json.loads((golden / "fullmodel" / "data" / "data.json").read_text())[:5]
    (tmp_path / "val.json").write_text(json.dumps(records))
    changes = {"trainer_mode": mode, "max_steps": 8, "learning_rate": 10.0, "eval_steps": 1}  # which makes it worse
    changes |= {"eval_data_path": tmp_path / "val.json", "load_best_model_at_end": True, "early_stopping_patience": 1}
    changes |= {"save_strategy": None, "gradient_checkpointing": None if mode == "zo" else False}
    run_on_two(small_run(**changes, output_dir=tmp_path / "two"), tmp_path / "log")
    train(argv=small_run(**changes, gradient_accumulation_steps=2, output_dir=tmp_path / "one"))
    reports = [report_of(tmp_path / name) for name in ("two", "one")]
    two, one = ([point["value"] for point in report["validation"]["history"]] for report in reports)
    assert len({report["steps"] for report in reports}) == 1 and reports[0]["steps"] < 8
    assert two == pytest.approx(one, rel=1e-3)
    assert {report["validation"]["weights_of_step"] for report in reports} == {reports[0]["steps"] - 1}


def launched_on_two(words: list[str]) -> None:
    """As a user starts it."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    run = subprocess.run(torchrun(words, 2), env=environment, capture_output=True, text=True, timeout=300, check=False)
    assert run.returncode == 0, run.stderr[-3000:]


class Replica(torch.nn.Module):
    """Stands for DistributedDataParallel, which needs other processes."""

    def __init__(self, module: torch.nn.Module, **options: Any) -> None:
        super().__init__()
        self.module = module
        self.options = options


@pytest.mark.parametrize("trainer_class", [ExtendedMeZOTrainer, LLaVATrainer])
def test_which_models_are_wrapped(
    trainer_class: type[LLaVATrainer], small_run: Flags, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Zeroth-order runs do without DistributedDataParallel; regular ones tell it that some weights are not used."""
    monkeypatch.setattr(accelerate.Accelerator, "multi_device", True)
    monkeypatch.setattr(torch.nn.parallel, "DistributedDataParallel", Replica)
    arguments = parse_arguments(small_run())
    model, tokenizer = build(*arguments)
    trainer = trainer_class(model=model, args=arguments[2], processing_class=tokenizer, train_dataset=[])
    prepared = trainer.accelerator.prepare(model)
    if trainer_class is ExtendedMeZOTrainer:
        assert prepared is model
    else:
        assert prepared.options["find_unused_parameters"]
