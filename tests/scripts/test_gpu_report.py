"""What scripts/benchmark/gpu.py says of what it has measured; a card is not needed for that."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest

sys.path.insert(0, str(Path(__file__).parents[2] / "scripts" / "benchmark"))
import gpu

MS = {"forwards": 50.0, "ours": 20.0, "eager": 25.0, "cached": 15.0, "inplace": 90.0}


def report(**changes: Any) -> dict[str, Any]:
    step = {"setting": "0.5b, 1 x 1500", "ms": MS, "mib": {"forwards": 95.4, "ours": None, "inplace": 2232.0}}
    step |= {"kernels": {"matrix products": 8.0}, "graphs": {"equal": True, "graphs": 1}}
    about = {"name": "A card", "multiprocessors": 132, "memory_gib": 139.0, "copy_tb_per_second": 4.2}
    whole = {
        "card": about | {"torch": "2.11", "triton": "3.6", "transformers": "5.17"},
        "bits": {"kernel": "triton", "cases": 60, "differences": []},
        "failing": {"good": True, "graphs": 1},
        "run": {"seconds_per_step": 0.01, "tensors": 124, "differing": {"cpu": 0, "cuda": 0}},
        "steps": [step],
        "noise": None,
        "left_out": [],
    }
    return whole | changes


def test_the_card_and_ratios_are_in_the_table() -> None:
    text = gpu.markdown(report())
    assert text.startswith("A card (132 multiprocessors, 139 GiB, copies 4.2 TB/s), torch 2.11, triton 3.6")
    assert "| 0.5b, 1 x 1500 | 50.0 | 20.0 | 25.0 | 15.0 | 90.0 | 0.40 | 4.50 |" in text
    assert "| 0.5b, 1 x 1500 | 95 | - | 2232 |" in text
    assert "0 differences in 60 random cases" in text and "of 124 tensors 0 differ on the CPU" in text


def test_what_is_wrong_is_in_capitals() -> None:
    step = report()["steps"][0] | {"graphs": {"equal": False, "graphs": 1}}
    wrong = {"bits": {"kernel": "triton", "cases": 60, "differences": ["case 7: perturb"]}, "steps": [step]}
    text = gpu.markdown(report(**wrong, failing={"good": False, "graphs": 0}))
    assert "1 differences in 60" in text and "case 7: perturb" in text
    assert "OTHER LOSSES OR WEIGHTS" in text and "BREAKS THE RUN" in text


def test_what_failed_or_did_not_fit_is_named() -> None:
    budget = gpu.Budget(minutes=1)
    assert budget.part("adds", sum, (1, 2)) == 3
    assert budget.part("divides", divmod, 1, 0) is None
    budget.end = 0.0
    assert budget.part("steps", sum, (1, 2)) is None
    assert budget.left_out[0].startswith("divides (failed: ZeroDivisionError") and budget.left_out[1:] == ["steps"]
    nothing = dict.fromkeys(("card", "bits", "failing", "run"))
    text = gpu.markdown(report(**nothing, steps=[], left_out=budget.left_out))
    assert text.endswith("; steps.") and "Not measured: divides (failed" in text


def test_without_a_card_it_says_so(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["gpu.py"])
    monkeypatch.setattr(gpu.torch.cuda, "is_available", lambda: False)
    with pytest.raises(SystemExit):
        gpu.main()
    assert "there is no CUDA device here" in capsys.readouterr().err
