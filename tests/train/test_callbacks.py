"""What a run shows: its outlook, its bar, its times."""

from __future__ import annotations

import logging
from types import SimpleNamespace
from typing import Any

import pytest
from transformers.trainer_callback import TrainerControl, TrainerState

from llava.train import callbacks

ARGS = SimpleNamespace(
    train_batch_size=4,
    gradient_accumulation_steps=2,
    data_processes=3,
    accelerator_config=SimpleNamespace(split_batches=False),
    disable_tqdm=False,
    logging_strategy="steps",
)


def state(step: int, total: int = 10) -> TrainerState:
    return TrainerState(global_step=step, max_steps=total)


@pytest.fixture()
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    now = [0.0]
    monkeypatch.setattr(callbacks.time, "perf_counter", lambda: now[0])
    return now


def test_replayed_steps_take_no_time_of_a_step(clock: list[float]) -> None:
    """Two that are replayed in a millisecond each, then three of a second."""
    times = callbacks.StepTimes(done=lambda: 5)
    times.on_train_begin(ARGS, state(3), TrainerControl())
    for step, seconds in ((4, 0.001), (5, 0.001), (6, 1.0), (7, 1.0), (8, 1.0)):
        clock[0] += seconds
        times.on_step_end(ARGS, state(step), TrainerControl())
    assert times.seconds == pytest.approx([1.0, 1.0, 1.0])


def test_the_bar_begins_behind_the_replayed_steps() -> None:
    shown = callbacks.ProgressBar(done=lambda: 5)
    shown.on_train_begin(ARGS, state(3), TrainerControl())
    assert shown.bar is not None and (shown.bar.initial, shown.bar.n) == (5, 5)
    for step in (4, 5, 6):
        shown.on_step_end(ARGS, state(step), TrainerControl())
    assert shown.bar.n == 6
    shown.on_train_end(ARGS, state(6), TrainerControl())


def test_the_last_step_is_logged() -> None:
    for step, strategy, logged in ((9, "steps", False), (10, "steps", True), (10, "epoch", True), (10, "no", False)):
        control, args = TrainerControl(), SimpleNamespace(logging_strategy=strategy, early_stopping_patience=0)
        callbacks.LogLastStep().on_step_end(args, state(step), control)
        assert control.should_log is logged


@pytest.mark.parametrize(("patience", "evaluated"), [(0, True), (2, False), (2, True)])
def test_what_an_early_stop_would_cut_off_is_logged(patience: int, evaluated: bool) -> None:
    control = TrainerControl(should_evaluate=evaluated)
    args = SimpleNamespace(logging_strategy="steps", early_stopping_patience=patience)
    callbacks.LogLastStep().on_step_end(args, state(5), control)
    assert control.should_log is (patience > 0 and evaluated)


@pytest.mark.parametrize(
    ("planned", "text"),
    [
        (None, "10 steps of 24 records: 240 records seen, 2.40 epochs of 100"),
        ([5] * 4 + [10] * 6, "10 steps of a planned number of records: 80 records seen, 0.80 epochs of 100"),
    ],
)
def test_the_outlook(planned: Any, text: str, caplog: pytest.LogCaptureFixture) -> None:
    logging.getLogger("llava").propagate = True
    with caplog.at_level("INFO", logger="llava"):
        callbacks.Outlook(100, planned).on_train_begin(ARGS, state(0), TrainerControl())
    assert caplog.messages[0] == text
