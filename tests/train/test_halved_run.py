"""Runs that go back and halve their rate: the same bits from the same command, whenever they are killed.

Windows have four steps here. The loss is a bowl, which a rate that is far too high climbs.
"""

from __future__ import annotations

import functools
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import test_mezo_trainer_alone as alone
import torch
from torch import nn

from llava.mezo.journal import diverging
from llava.mezo.journal.files import RECORDS, Journal
from llava.mezo.journal.kept import Kept, halvings, kept_journals
from llava.mezo.journal.replay import Replay
from llava.train.zo import halved_run, journaled_run, watch
from llava.train.zo.halved_run import HalvedRun

STEPS, RATE = 36, 0.3
BACK = [Kept(1, 12, 2), Kept(2, 12, 2)]
"""What the run does: its first window is the best each time."""
Make = Callable[..., Any]
module, mezo = alone.module, alone.mezo


class Killed(BaseException):
    """Stands for kill -9."""


class Bowl(nn.Module):
    """Eight numbers, and the sum of their squares as the loss, which is not finite above a limit."""

    def __init__(self, limit: float = float("inf")) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(8))
        self.limit = limit

    def forward(self, ids: torch.Tensor, image: torch.Tensor, target: torch.Tensor) -> dict[str, torch.Tensor]:
        loss = self.weight.double().square().sum()
        return {"loss": loss if loss < self.limit else loss * float("nan")}


@pytest.fixture()
def bowl(mezo: Make, monkeypatch: pytest.MonkeyPatch) -> Make:
    """Makes a run that diverges twice."""
    for place in (diverging, watch):
        monkeypatch.setattr(place, "WINDOW", 4)
    settings = {"max_steps": STEPS, "learning_rate": RATE, "zo_on_divergence": "halve", "zo_journal": True}
    return lambda *folder, **changes: mezo(*folder, **({"model": Bowl(), **settings} | changes))


def journal_of(trainer: Any) -> Path:
    return Path(trainer.args.output_dir) / "mezo_journal"


def outcome(trainer: Any) -> tuple[bytes, bytes]:
    """Its records and its weights."""
    return (journal_of(trainer) / RECORDS).read_bytes(), trainer.model.weight.detach().numpy().tobytes()


def replayed(folder: Path) -> torch.Tensor:
    journal = Journal.read(folder)
    replay = Replay(journal, lambda name: Bowl().weight.detach())
    replay.advance(len(journal.records))
    return replay.weight("weight")


def rates_of(trainer: Any) -> list[float]:
    return [record.rates[0] for record in Journal.read(journal_of(trainer)).records]


def test_a_rate_that_is_far_too_high_is_halved_until_it_learns(bowl: Make) -> None:
    trainer = bowl("one")
    trainer.train()
    folder = journal_of(trainer)
    assert kept_journals(folder) == trainer.gone_back == BACK
    records = Journal.read(folder).records
    assert records[-1].loss < records[0].loss / 2
    assert rates_of(trainer) == [RATE] * 2 + [RATE / 4] * (STEPS - 2)
    logged = {entry["step"]: entry for entry in trainer.state.log_history if "loss" in entry}
    assert [logged[step]["learning_rate"] for step in (1, STEPS)] == [RATE, RATE / 4]
    assert ["step_time" in logged[step] for step in (1, 2, 3, 4)] == [False, False, True, True]

    assert torch.equal(replayed(folder), trainer.model.weight)
    climbed = [Journal.read(kept.inside(folder)) for kept in BACK]
    assert [len(journal.records) for journal in climbed] == [kept.steps for kept in BACK]
    assert {path.name for path in (climbed[0].folder / "model").iterdir()} >= {"model.safetensors"}  # for a replay
    assert climbed[0].records[:2] == climbed[1].records[:2] == records[:2]
    assert replayed(climbed[0].folder).norm() > 10 * trainer.model.weight.norm()

    again = bowl("two")
    again.train()
    assert outcome(again) == outcome(trainer)


def test_the_rates_are_those_of_the_schedule_halved(bowl: Make) -> None:
    trainer = bowl(lr_scheduler_type="linear", max_steps=40)
    trainer.train()
    assert trainer.gone_back == BACK
    schedule = [RATE * (40 - step) / 40 for step in range(40)]
    halved = [rate / (1 if step < BACK[-1].back_to else 2 ** len(BACK)) for step, rate in enumerate(schedule)]
    assert rates_of(trainer) == pytest.approx(halved)


def test_the_latest_time_that_a_step_was_gone_back_behind_counts() -> None:
    times = [Kept(1, 75, 50), Kept(2, 100, 30), Kept(3, 150, 60)]
    assert [halvings(step, times) for step in (0, 29, 30, 59, 60, 1000)] == [0, 0, 2, 2, 3, 3]
    assert halvings(0, [Kept(1, 3, 0)]) == 1 and halvings(0, []) == 0


def test_losses_that_are_not_finite_are_gone_back_from(bowl: Make) -> None:
    """Here to the start, since not even the first window came to its end."""
    trainer = bowl(model=Bowl(limit=15), learning_rate=1.2, zo_max_bad_steps=2)
    trainer.train()
    assert {kept.back_to for kept in trainer.gone_back} == {0}
    assert rates_of(trainer) == [1.2 / 2 ** len(trainer.gone_back)] * STEPS
    records = Journal.read(journal_of(trainer)).records
    assert records[-1].loss < records[0].loss
    assert torch.equal(replayed(journal_of(trainer)), trainer.model.weight)


@pytest.mark.slow
@pytest.mark.parametrize(
    "changes",
    [
        {"zo_estimator": "svrg", "zo_anchor_steps": 3},
        {"zo_rule": "momentum", "zo_window": 3},
        {"zo_rule": "adamu", "zo_window": 3},
    ],
    ids=lambda changes: str(next(iter(changes.values()))),
)
def test_what_an_algorithm_remembers_goes_back_too(changes: dict[str, Any], bowl: Make) -> None:
    trainer = bowl("one", **changes)
    trainer.train()
    assert any(kept.back_to > 0 for kept in trainer.gone_back)
    assert torch.equal(replayed(journal_of(trainer)), trainer.model.weight)
    again = bowl("two", **changes)
    again.train()
    assert outcome(again) == outcome(trainer)


def test_it_is_not_halved_for_ever(module: ModuleType, bowl: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(halved_run, "MOST_HALVINGS", 1)
    trainer = bowl()
    with pytest.raises(module.DivergedError, match=r"by step 12: .*halved 1 times and was 0.15\. Lower .*: 0.075\)"):
        trainer.train()
    assert rates_of(trainer) == [RATE] * 2 + [RATE / 2] * 10


class Mortal:
    """File operations that end with one of them: neither it nor any after it is carried out."""

    NAMES = ("rename", "replace", "unlink", "mkdir", "link", "ftruncate")

    def __init__(self, patch: pytest.MonkeyPatch, last: int) -> None:
        self.done, self.last, self.armed = 0, last, False
        for place, name in (*((os, name) for name in self.NAMES), (shutil, "rmtree")):
            patch.setattr(place, name, functools.partial(self._operate, getattr(place, name)))
        go_back, append = HalvedRun._go_back, Journal.append

        def going_back(run: HalvedRun) -> str:
            self.armed = True
            return go_back(run)

        def appending(journal: Journal, record: Any) -> None:
            self.armed = False
            append(journal, record)

        patch.setattr(HalvedRun, "_go_back", going_back)
        patch.setattr(Journal, "append", appending)

    def _operate(self, operation: Callable[..., Any], *args: Any, **options: Any) -> Any:
        if not self.armed:
            return operation(*args, **options)
        self.done += 1
        if self.done >= self.last:
            if self.done == self.last and operation.__name__ == "rmtree" and Path(args[0]).is_dir():
                next(path for path in Path(args[0]).rglob("*.safetensors")).open("w").close()  # half of it
            raise Killed
        self.armed = False  # a whole folder is removed in one operation
        try:
            return operation(*args, **options)
        finally:
            self.armed = True


def test_killed_at_any_moment_of_going_back_it_ends_as_the_one_that_was_not(
    bowl: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = functools.partial(
        bowl, max_steps=18, logging_steps=9, save_strategy="steps", save_steps=8, save_total_limit=1
    )
    never_killed = run("whole")
    never_killed.train()
    with monkeypatch.context() as patch:
        patch.setattr(journaled_run, "RESUME_SECONDS", 0.0)
        patch.setattr(HalvedRun, "_go_back", lambda self: (_ for _ in ()).throw(Killed))
        with pytest.raises(Killed):
            run("before").train()
    assert (tmp_path / "before" / "checkpoint-8").is_dir() and (tmp_path / "before/mezo_journal/resume-11").is_dir()
    for last in range(1, 100):
        shutil.copytree(tmp_path / "before", tmp_path / str(last))
        with monkeypatch.context() as patch:
            mortal = Mortal(patch, last)
            try:
                run(str(last)).train(True)
            except Killed:
                pass
            else:
                break
        again = run(str(last))
        again.train(True)
        assert outcome(again) == outcome(never_killed), last
        assert again.gone_back == BACK
        names = [{p.name for p in journal_of(one).parent.rglob("*")} for one in (again, never_killed)]
        assert names[0] == names[1]
    assert mortal.done > 10, mortal.done
