"""A learning rate by a run that grows it until it breaks."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from finished_runs import report_of

from llava.errors import InputError
from llava.train import found_rate, range_test
from llava.train.flags.parsing import parse_arguments
from llava.train.range_test import SHARE, Mark, RangeTest, share_for, trial_settings
from llava.train.train import train
from llava.train.zo.extended_trainer import ExtendedMeZOTrainer

Flags = Callable[..., list[str]]


@pytest.mark.parametrize(
    ("losses", "broken"),
    [
        ([2.0, 1.9, 1.5, 1.0, 1.1, 1.6, 2.5, 9.0], 5),  # a quarter of the gain is lost at 1.25
        ([2.0, 1.5, 1.0, 9.0, 1.0, 1.0, 3.0, math.inf], 6),  # once is no break
        ([2.0, 1.9, 1.5, 1.0, 0.9], None),
        ([2.05, 2.0, 2.05, 2.0, 2.05, 2.5, 9.0], 5),  # no gain, and noise
        ([3.0, 3.0, 3.0, 3.0], None),  # from the first rate on
        ([2.0, 1.9, math.inf], 2),
    ],
)
def test_where_a_run_breaks(losses: list[float], broken: int | None) -> None:
    found = RangeTest(2.0, [Mark(10.0**k, loss) for k, loss in enumerate(losses)], 0.5)
    assert found.breaking_rate == (None if broken is None else 10.0**broken)
    assert found.rate == (None if broken is None else 0.5 * 10.0**broken)
    for number in range(1, len(losses)):
        part = RangeTest(2.0, found.marks[:number])
        assert not part.settled or part.breaking_rate == found.breaking_rate


def test_when_a_run_has_broken_for_good() -> None:
    marks = [Mark(10.0**k, loss) for k, loss in enumerate([2.0, 1.5, 1.0, 1.0, 1.6, 1.7, 1.6, 1.8])]
    assert [RangeTest(2.0, marks[:number]).settled for number in range(5, 9)] == [False, False, False, True]
    assert RangeTest(2.0, [Mark(1.0, 9.0)] * 4).settled  # from the first rate on


@pytest.mark.parametrize(
    ("changes", "share"),
    [
        ({"max_steps": 10_000}, SHARE),
        ({"max_steps": 2_500}, SHARE),
        ({"max_steps": 625}, 2 * SHARE),
        ({"max_steps": 10}, 4 * SHARE),
        ({"max_steps": 10, "trainer_mode": "regular"}, SHARE),
        ({"max_steps": 625, "zo_estimator": "fzoo"}, 2 * 0.3**0.5 * SHARE),
        ({"max_steps": -1, "num_train_epochs": 50, "gradient_accumulation_steps": 2}, 2 * SHARE),
    ],
)
def test_share_of_a_short_run(changes: dict[str, Any], share: float, small_run: Flags) -> None:
    args = parse_arguments(small_run(learning_rate="auto", per_device_train_batch_size=4, **changes))[2]
    assert share_for(args, records=100) == pytest.approx(share)


@pytest.fixture()
def short(monkeypatch: pytest.MonkeyPatch) -> None:
    """A test of at most 72 steps."""
    monkeypatch.setattr(range_test, "STEPS_OF_DECADE", 12)
    monkeypatch.setattr(range_test, "MARKS_OF_DECADE", 4)


def files(folder: Path) -> dict[str, bytes]:
    return {name: (folder / name).read_bytes() for name in ("model.safetensors", "mezo_journal/records.bin")}


def test_a_run_finds_its_rate_once(
    small_run: Flags, tmp_path: Path, short: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It has the bits of one that is given the rate, and goes on without looking for it again.

    What a run that did not take a step left there is not taken: it may have had other flags.
    """
    (tmp_path / "auto").mkdir()
    (tmp_path / "auto" / "learning_rate.json").write_text('{"learning_rate": 1.0}')
    auto = small_run(learning_rate="auto", output_dir=tmp_path / "auto")
    train(argv=[*auto, "--max_steps", "2"])
    found = json.loads((tmp_path / "auto" / "learning_rate.json").read_text())
    rates = [mark["rate"] for mark in found["marks"]]
    assert rates[1] / rates[0] == pytest.approx(10 ** (3 / 12)) and rates[0] == pytest.approx(5e-8 * 10 ** (2 / 12))
    assert 5e-5 < found["learning_rate"] < 5e-3 and found["marks"][-1]["loss"] > found["start"]
    report = report_of(tmp_path / "auto")
    assert report["range_test"] == found and (tmp_path / "auto" / "learning_rate.png").stat().st_size > 10_000

    train(argv=small_run(learning_rate=found["learning_rate"], output_dir=tmp_path / "given", max_steps=2))
    assert files(tmp_path / "auto") == files(tmp_path / "given")

    monkeypatch.setattr("llava.train.train.trainer_of", lambda *args: pytest.fail("looked for again"))
    (tmp_path / "auto" / "trainer_state.json").unlink()
    train(argv=[*auto, "--max_steps", "2"])
    assert files(tmp_path / "auto") == files(tmp_path / "given")
    assert report_of(tmp_path / "auto")["range_test"] == found


def test_no_rate_is_found(small_run: Flags, tmp_path: Path, short: None, refused: Callable[..., str]) -> None:
    """A random model that AdamW does not break."""
    said = refused(train, argv=small_run(learning_rate="auto", trainer_mode="regular", output_dir=tmp_path / "run"))
    assert "--learning_rate auto: between 5e-08 and 0.05 no rate was found" in said and "give a number" in said
    assert not (tmp_path / "run" / "learning_rate.json").exists()


def test_flags_without_a_rate(tmp_path: Path, small_run: Flags) -> None:
    (tmp_path / "training_args.json").write_text("{}")
    args = parse_arguments(small_run(learning_rate="auto"))[2]
    with pytest.raises(InputError, match=r"the flags beside .* cannot be used"):
        found_rate.found_rate(tmp_path, tmp_path, lambda _: None, args, "plain")


@pytest.mark.parametrize("steps", [8, 9])
def test_a_run_that_is_no_number_any_more_is_broken(
    steps: int, small_run: Flags, tmp_path: Path, short: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where that is measured, or where it ends the run, whose weights are not saved then."""

    def loss(self: Any, batch: Any) -> torch.Tensor:
        return torch.tensor(math.nan if self.state.global_step == 9 else 2.0)

    monkeypatch.setattr(ExtendedMeZOTrainer, "step_loss", loss)
    monkeypatch.setattr(ExtendedMeZOTrainer, "diverged", property(lambda self: self.state.global_step == steps < 9))
    monkeypatch.setattr(ExtendedMeZOTrainer, "_save_checkpoint", lambda *args: pytest.fail("saved"))
    train(argv=small_run(learning_rate="auto", output_dir=tmp_path, max_steps=2))
    found = json.loads((tmp_path / "learning_rate.json").read_text())
    assert [mark["loss"] for mark in found["marks"]] == [2.0, 2.0, None]
    assert found["breaking_rate"] == found["marks"][2]["rate"]


def test_a_loss_that_is_not_finite_from_the_start(
    small_run: Flags, tmp_path: Path, short: None, monkeypatch: pytest.MonkeyPatch, refused: Callable[..., str]
) -> None:
    monkeypatch.setattr("llava.train.validation.Validation.measure", lambda *args: math.nan)
    assert "records of --data_path is nan before the first step" in refused(
        train, argv=small_run(learning_rate="auto", output_dir=tmp_path / "run")
    )


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"learning_rate": "fast"}, "'fast' is neither a number nor auto"),
        ({"zo_rule": "normalized"}, "--zo_rule normalized excludes --learning_rate auto"),
        ({"zo_batch_growth": "0:2"}, "--zo_batch_growth excludes --learning_rate auto"),
        ({"zo_estimator": "svrg"}, "--zo_estimator svrg excludes --learning_rate auto"),
        ({"zo_objective": "accuracy"}, "--zo_objective accuracy excludes --learning_rate auto"),
        ({"zo_from_journal": "run/mezo_journal:3"}, "--zo_from_journal excludes --learning_rate auto"),
        ({"trainer_mode": "regular", "fsdp": "full_shard"}, "--fsdp excludes --learning_rate auto"),
        ({"trainer_mode": "regular", "cycle_blocks": 3}, "--cycle_blocks excludes --learning_rate auto"),
        ({"trainer_mode": "regular", "optim": "sgd"}, "--optim sgd excludes --learning_rate auto"),
        ({"trainer_mode": "regular", "mm_vision_tower_lr": 1e-6}, "--mm_vision_tower_lr excludes --learning_rate auto"),
    ],
)
def test_what_no_rate_is_found_for(changes: dict[str, Any], message: str, small_run: Flags) -> None:
    with pytest.raises(InputError) as raised:
        parse_arguments(small_run(**{"learning_rate": "auto"} | changes))
    assert message in str(raised.value)


def test_a_script_that_took_auto_says_what_to_give(small_run: Flags) -> None:
    """The user, who gave no rate, did not ask for a search."""
    with pytest.raises(InputError, match=r"leave --zo_rule momentum out, or give --learning_rate a number$"):
        parse_arguments(small_run(learning_rate="auto", zo_rule="momentum", zo_estimator="fzoo"))


def test_what_a_test_has_in_place_of_the_run_s_flags(small_run: Flags) -> None:
    """It takes no more memory than a step, and has no records to evaluate on."""
    evaluated = {"eval_data_path": "some.json", "eval_on_start": True, "per_device_train_batch_size": 2}
    args = parse_arguments(small_run(learning_rate="auto", **evaluated))[2]
    own = trial_settings(args, "folder")
    assert (args.eval_batch_size, own.eval_batch_size) == (8, 2)
    assert (args.eval_on_start, own.eval_on_start) == (True, False)


@pytest.mark.parametrize(("mode", "rate"), [("zo", 3e-5), ("regular", 1e-4)])
def test_it_is_looked_for_around_the_usual_rate(mode: str, rate: float, small_run: Flags) -> None:
    args = parse_arguments(small_run(learning_rate="auto", trainer_mode=mode, adapter="pissa"))[2]
    assert args.finds_learning_rate and args.learning_rate == rate
    assert not parse_arguments(small_run(trainer_mode=mode))[2].finds_learning_rate


def test_many_directions_have_fewer_steps_around_a_rate_of_their_own(
    small_run: Flags, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Three marks a decade here, one every other step."""
    monkeypatch.setattr(range_test, "OF_MANY_DIRECTIONS", 6)
    monkeypatch.setattr(range_test, "MARKS_OF_DECADE", 3)
    train(argv=small_run(learning_rate="auto", zo_estimator="fzoo", output_dir=tmp_path, max_steps=1))
    found = json.loads((tmp_path / "learning_rate.json").read_text())
    rates = [mark["rate"] for mark in found["marks"]]
    assert rates[:2] == pytest.approx([1e-6 * 10 ** (1 / 6), 1e-6 * 10 ** (3 / 6)]) and len(rates) <= 18
    assert 1e-5 < found["learning_rate"] < found["breaking_rate"] < 1
