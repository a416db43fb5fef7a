"""Whether a run diverges, by made-up losses and by a made-up journal."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import pytest
import torch
from torch import nn

from llava.mezo import MeZO, MeZOConfig
from llava.mezo.journal.diverging import RISE, WINDOW, diverging, journal_bytes, journal_diverges
from llava.mezo.journal.files import JOURNAL_FOLDER, Journal
from llava.mezo.journal.fingerprint import fingerprint

CALM = [1.0, -2.0, 0.5, 3.0, -1.5] * (WINDOW // 5)
WILD = [value * 1.5 * RISE for value in CALM]


def test_rising_gradients_with_a_rising_loss_diverge() -> None:
    assert diverging([1.0] * WINDOW + [1.5] * 2 * WINDOW, CALM + 2 * WILD) == (
        f"diverged by step {3 * WINDOW}: projected gradients are 6.0 times those of the first {WINDOW} steps "
        "(medians), the loss 1.5 after 1"
    )


@pytest.mark.parametrize(
    ("losses", "gradients"),
    [
        ([1.0] * WINDOW + [0.5] * 2 * WINDOW, CALM + 2 * WILD),  # the loss falls
        ([1.0] * WINDOW + [1.5] * 2 * WINDOW, 3 * CALM),  # gradients are as before
        ([1.0] * WINDOW + [1.5] * 2 * WINDOW, CALM + WILD + CALM),  # they were large for a while
        ([1.0] * WINDOW + [1.5] * WINDOW, CALM + WILD),  # too short to tell
        ([], []),
    ],
)
def test_nothing_else_does(losses: list[float], gradients: list[float]) -> None:
    assert diverging(losses, gradients) is None


def test_one_large_gradient_is_no_divergence() -> None:
    gradients = CALM * 3
    gradients[WINDOW + 3] = gradients[2 * WINDOW + 3] = 1e6
    assert diverging([1.0] * WINDOW + [1.5] * 2 * WINDOW, gradients) is None


def spread(middle: float) -> list[float]:
    """Losses of a window around it."""
    return [middle + 0.02 * (step - WINDOW // 2) for step in range(WINDOW)]


def test_where_gradients_are_normalised_losses_above_all_of_the_first_window_diverge() -> None:
    losses = spread(1.0) + spread(1.3) + spread(1.4)
    assert diverging(losses, 3 * CALM, normalised=True) == (
        f"diverged by step {3 * WINDOW}: the loss is 1.4 (medians of {WINDOW} steps) after 1, and above all of the "
        f"first {WINDOW} steps, which are at most 1.24"
    )
    assert diverging(losses, 3 * CALM) is None


@pytest.mark.parametrize("middles", [(1.0, 1.3, 1.2), (1.0, 1.2, 1.3), (1.0, 0.6, 0.4), (1.0, 1.3)], ids="{0}".format)
def test_losses_within_the_spread_of_the_first_window_do_not(middles: tuple[float, ...]) -> None:
    losses = [loss for middle in middles for loss in spread(middle)]
    assert diverging(losses, len(middles) * WILD, normalised=True) is None


def journal_of(run: Path, steps: int, rise: Callable[[int], float]) -> None:
    """The journal of a run on 8 numbers whose loss has a slope of `rise(step)`, and is about as large."""
    model = nn.Linear(8, 1, bias=False)
    base = fingerprint({"weight": model.weight.detach().clone()})
    optimizer = MeZO(model.parameters(), model, MeZOConfig(eps=1e-3), lr=1e-6)
    optimizer.journal = Journal.open(run / JOURNAL_FOLDER, optimizer.journal_header("base", base))
    with closing(optimizer.journal):
        for step in range(steps):
            slope = rise(step)
            optimizer.accumulate(step, lambda slope=slope: slope * (2 + model(torch.ones(8)).sum()))
            optimizer.step()


def test_a_journal_tells(tmp_path: Path) -> None:
    assert journal_bytes(tmp_path) == 0 and journal_diverges(tmp_path) is None
    journal_of(tmp_path / "rising", 3 * WINDOW, lambda step: 1.1**step)
    journal_of(tmp_path / "steady", 3 * WINDOW, lambda step: 1.0)
    assert journal_bytes(tmp_path / "rising") == 36 * 3 * WINDOW
    assert str(journal_diverges(tmp_path / "rising")).startswith(f"diverged by step {3 * WINDOW}: projected gradients")
    assert journal_diverges(tmp_path / "steady") is None


def test_a_journal_that_does_not_check_is_for_the_run_to_tell(tmp_path: Path) -> None:
    journal_of(tmp_path, 3 * WINDOW, lambda step: 1.1**step)
    file = tmp_path / JOURNAL_FOLDER / "records.bin"
    file.write_bytes(b"\1" + file.read_bytes()[1:])
    assert journal_diverges(tmp_path) is None
