"""`scripts/benchmark/loop.py`: too little to measure is refused before anything runs."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow

BENCHMARK = Path(__file__).parents[2] / "scripts" / "benchmark"


@pytest.mark.parametrize(
    ("words", "message"),
    [(["--images", "4"], "--images 4: give 5 or more"), (["--steps", "22"], "--steps 22: give 23")],
)
def test_too_little_to_measure(
    words: list[str], message: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.syspath_prepend(str(BENCHMARK))
    loop = importlib.import_module("loop")
    monkeypatch.setattr(loop, "samples_a_second", lambda images: pytest.fail("it was measured"))
    monkeypatch.setattr(sys, "argv", ["loop.py", *words])
    with pytest.raises(SystemExit):
        loop.main()
    assert message in capsys.readouterr().err
