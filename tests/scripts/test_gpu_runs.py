"""scripts/benchmark/gpu_runs.py: all ways of training are among its runs, and what goes wrong shows."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

sys.path.insert(0, str(Path(__file__).parents[2] / "scripts" / "benchmark"))
import gpu_runs

from llava.mezo.algorithms.choice import ESTIMATORS, RULES
from llava.mezo.config import STORAGES
from llava.train.flags.arguments import TrainingArguments
from llava.train.flags.parsing import parse_arguments


def parse(way: str, folder: Path) -> TrainingArguments:
    return parse_arguments(gpu_runs.command(gpu_runs.changes_of(way, folder, 2, "cpu"), folder / "run"))[2]


@pytest.mark.parametrize("way", gpu_runs.WAYS)
def test_the_flags_of_each_way_are_accepted(way: str, tmp_path: Path) -> None:
    parse(way, tmp_path)


def test_every_estimator_rule_and_storage_is_run(tmp_path: Path) -> None:
    runs = [parse(way, tmp_path) for way in gpu_runs.WAYS]
    assert {run.zo_estimator for run in runs} == set(ESTIMATORS)
    assert {run.zo_rule for run in runs} == set(RULES)
    assert {run.zo_weight_storage for run in runs} == set(STORAGES)


def test_tensors_that_are_other_or_not_there_differ(tmp_path: Path) -> None:
    for name, tensors in (("one", {"a": 0.0, "b": 1.0, "c": 2.0}), ("other", {"a": 0.0, "b": 1.5})):
        (tmp_path / name).mkdir()
        save_file({key: torch.tensor([value]) for key, value in tensors.items()}, tmp_path / name / "x.safetensors")
    assert gpu_runs.compared(tmp_path / "one", tmp_path / "one") == (3, 0)
    assert gpu_runs.compared(tmp_path / "one", tmp_path / "other") == (3, 2)


def test_a_run_that_failed_is_a_line_of_the_table() -> None:
    good = {"final_loss": 0.5, "ms_a_step": 9.0, "tensors": 124, "differing": 1, "from_plain": 2}
    text = gpu_runs.markdown({"plain": good, "fzoo": {"failed": "Traceback\nerror: no such flag"}})
    assert "| plain | 0.5000 | 9.0 | 124 | 1 | 2 |" in text
    assert "| fzoo | FAILED: error: no such flag |" in text
