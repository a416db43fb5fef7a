"""Advice on a rate and an eps before a run."""

from __future__ import annotations

import json
import math
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from llava.mezo.curvature import Landscape, Probe
from llava.train import advise, range_test
from llava.train.advise import main
from llava.train.range_test import RangeTest
from llava.train.surroundings import SIZES, EpsSizes, noise_scale
from llava.train.train import trainer_of

Flags = Callable[..., list[str]]


@pytest.fixture(autouse=True)
def short(monkeypatch: pytest.MonkeyPatch) -> None:
    """A range test of at most 36 steps."""
    monkeypatch.setattr(range_test, "STEPS_OF_DECADE", 6)
    monkeypatch.setattr(range_test, "MARKS_OF_DECADE", 3)


@pytest.mark.slow
def test_a_run_is_measured_and_nothing_is_left_behind(
    small_run: Flags, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Twice the same: directions and batches follow from the seeds."""
    found = []
    for name in ("a", "b"):
        flags = small_run(per_device_train_batch_size=2, output_dir=tmp_path / "run")
        file = tmp_path / f"{name}.json"
        main([*flags, "--directions", "4", "--batches", "3", "--eigenvalues", "1", "--advice", str(file)])
        found.append(json.loads(file.read_text()))
    assert found[0] == found[1]
    assert found[0]["records_of_a_batch"] == 2 and found[0]["loss"] > 0
    assert found[0]["square"]["value"] > 0 and len(found[0]["slopes_off"]) == len(SIZES) - 1
    (largest,), lowest = found[0]["eigenvalues"]["largest"], found[0]["eigenvalues"]["lowest"]
    assert largest["value"] > 0 > lowest["value"] and 0 <= largest["residual"] < largest["value"]
    shown = capsys.readouterr().out
    assert "--learning_rate " in shown and "--zo_eps " in shown and (tmp_path / "a.png").exists()
    assert f"Hessian       largest {largest['value']:.3g} ± " in shown
    tested = found[0]["range_test"]
    assert tested["learning_rate"] == tested["share"] * tested["breaking_rate"]
    assert not (tmp_path / "run").exists()


def test_regular_mode_has_a_range_test_alone(
    small_run: Flags, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    main([*small_run(trainer_mode="regular"), "--advice", str(tmp_path / "found.json")])
    found = json.loads((tmp_path / "found.json").read_text())
    rate = found["range_test"]["learning_rate"]
    assert 1e-3 < rate < 1e-1 and "square" not in found
    assert f"--learning_rate                  {rate:.1g}, from" in capsys.readouterr().out


def test_weights_that_are_stored_elsewhere_have_eigenvalues(
    small_run: Flags, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """And the model that was measured is gone when that of the range test comes."""
    models = []

    def make(*args: Any) -> Any:
        trainer = trainer_of(*args)
        models.append(weakref.ref(trainer.model))
        return trainer

    def grown(*args: Any) -> RangeTest:
        assert models[0]() is None
        return RangeTest(1.0, [])

    monkeypatch.setattr(advise, "trainer_of", make)
    monkeypatch.setattr(advise, "run_range_test", grown)
    flags = small_run(bf16=True, zo_weight_storage="fp32", output_dir=tmp_path / "run")
    main([*flags, "--directions", "3", "--batches", "2", "--eigenvalues", "1"])
    said = capsys.readouterr().out
    assert "eigenvalues of the Hessian       largest" in said and "nan" not in said


@pytest.mark.parametrize(
    ("changes", "own", "message"),
    [
        ({"trainer_mode": "regular", "optim": "sgd"}, [], "--optim sgd excludes advice"),
        ({}, ["--directions", "2"], "--directions 2 must be at least 3"),
        ({}, ["--advice", "."], "--advice .: give a file in a folder that exists"),
        ({}, ["--advice", "nowhere/a.json"], "--advice nowhere/a.json: give a file in a folder that exists"),
        ({}, ["--batches", "1"], "--batches 1 must be at least 2"),
        ({}, ["--eigenvalues", "-1"], "--eigenvalues -1 must be at least 0"),
        ({"zo_offload": "cpu"}, ["--eigenvalues", "1"], "--eigenvalues excludes"),
        ({"zo_batch_growth": "0:2"}, [], "--zo_batch_growth"),
        ({"zo_eps": 0}, [], "--zo_eps 0"),
        ({"data_path": "none.json"}, [], "none.json"),
    ],
)
def test_what_cannot_be_measured_is_refused_before_loading(
    changes: dict[str, Any], own: list[str], message: str, small_run: Flags, refused: Callable[..., str]
) -> None:
    assert message in refused(main, [*small_run(**changes), *own])


def test_batch_whose_noise_is_its_signal() -> None:
    """Slopes +-(1 + d) and +-(1 - d) have the signal 1 - d^2 and the noise 2 d^2."""
    signs = [1, -1] * 8
    probes = [[Probe(1.0, s * 1.5, 0.0), Probe(1.0, s * 0.5, 0.0)] for s in signs]
    assert noise_scale(Landscape(probes), 6) == pytest.approx(6 * 0.5 / 0.75)
    assert noise_scale(Landscape([[Probe(1.0, 1.0, 0.0), Probe(1.0, s * 1.0, 0.0)] for s in signs]), 6) is None


def test_slopes_are_compared_with_those_at_twice_the_eps() -> None:
    """Along two directions: noise of 0.2 and -0.2 at 1, none at 2, curvature's 1 at 4, which has slopes 3 and -1."""
    found = EpsSizes.of_slopes([1, 2, 4], [[2.2, 2.0, 3.0], [-2.2, -2.0, -1.0]])
    assert found.sizes == (1, 2)
    assert found.off == pytest.approx((0.1, math.sqrt(2 / 10)))


@pytest.mark.parametrize(
    ("off", "advice"),
    [
        ((0.4, 0.2, 0.1, 0.05, 0.3), "0.001 is fine; up to 0.002 is, and leaves more room for rounding as slopes fall"),
        ((0.4, 0.2, 0.1, 0.2, 0.3), "0.001 is fine"),
        ((0.9, 0.6, 0.3, 0.08, 0.3), "0.001 is small for the rounding of this model's losses: try 0.002"),
        ((0.05, 0.09, 0.3, 0.6, 0.9), "0.001 is large for the curvature here: try 0.0005"),
        ((0.5, 0.4, 0.3, 0.2, 0.5), "none is good, 0.002 is the least bad"),
        ((math.nan,) * 5, "not known"),
    ],
)
def test_eps_that_is_too_small_or_too_large(off: tuple[float, ...], advice: str) -> None:
    assert EpsSizes((0.00025, 0.0005, 0.001, 0.002, 0.004), off).advice(1e-3) == advice
