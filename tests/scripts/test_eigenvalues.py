"""The page and the picture of eigenvalues: of which runs, and that nothing is computed twice."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[2] / "scripts" / "study"))

import eigenvalues

FOUND = {
    "weights": 1234,
    "largest": [{"value": 20.0, "residual": 0.1}],
    "lowest": {"value": -40.0, "residual": 0.2},
    "products": 7,
    "trace": 30.0,
    "trace_error": 5.0,
    "frobenius": 80.0,
}


@pytest.fixture
def flags_of(monkeypatch):
    """The flags of all that is measured."""
    seen = []
    monkeypatch.setattr(eigenvalues, "measured", lambda flags, options: seen.append(flags) or FOUND)
    return seen


def test_runs_are_those_of_the_study(tmp_path, flags_of, figures_of, capsys):
    (tmp_path / "scan").mkdir()
    for split in ("train", "val", "test"):
        (tmp_path / "scan" / f"{split}.json").write_text("[]")
    words = ["--data", str(tmp_path), "--output", str(tmp_path / "out"), "--tasks", "scan", "--kinds", "none", "pissa"]
    made = figures_of(eigenvalues)
    for _ in range(2):
        eigenvalues.main(words)
    assert [flags[flags.index("--adapter") + 1] for flags in flags_of] == ["none", "pissa"]
    assert all(flags[flags.index("--per_device_train_batch_size") + 1 :][0] for flags in flags_of)
    assert all(str(tmp_path / "scan" / "train.json") in flags and "regular" in flags for flags in flags_of)
    assert "| scan | pissa | 1,234 | 20 ± 0.1 | -40 ± 0.2 | 30 ± 5 | 80 | 4 |" in capsys.readouterr().out
    assert (tmp_path / "out" / "eigenvalues.md").read_text().count("| scan |") == 2
    (axes,) = made[0][1][0]
    assert axes.get_yscale() == "log" and [bar.get_height() for bar in axes.patches] == [20, 20, 40, 40]


def test_flags_of_a_run_stand_for_tasks(tmp_path, flags_of):
    own = ["--output", str(tmp_path), "--kinds", "lora", "--name", "words", "--records", "8"]
    eigenvalues.main([*own, "--", "--model_name_or_path", "m"])
    assert flags_of == [["--model_name_or_path", "m", "--adapter", "lora"]]
    assert json.loads((tmp_path / "eigenvalues" / "words-lora-8.json").read_text()) == FOUND
