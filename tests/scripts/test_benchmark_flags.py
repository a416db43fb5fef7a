"""Benchmarks find wrong flags before anything is measured."""

from __future__ import annotations

import argparse
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


def test_the_file_of_the_figures(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.syspath_prepend(str(BENCHMARK))
    parser = argparse.ArgumentParser()
    importlib.import_module("measuring").add_json(parser)
    assert parser.parse_args([]).json is None
    asked = tmp_path / "new" / "figures.json"
    assert parser.parse_args(["--json", str(asked)]).json == asked and asked.parent.is_dir()
    (tmp_path / "file").write_text("")
    for wrong in (tmp_path, tmp_path / "file" / "figures.json"):
        with pytest.raises(SystemExit):
            parser.parse_args(["--json", str(wrong)])
        assert f"--json: {wrong}" in capsys.readouterr().err
