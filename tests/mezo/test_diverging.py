"""Whether a run diverges, by made-up losses and by a made-up journal."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import pytest
import torch
from torch import nn

from llava.mezo import MeZO, MeZOConfig
from llava.mezo.journal.diverging import WINDOW, diverging, journal_bytes, journal_diverges
from llava.mezo.journal.files import JOURNAL_FOLDER, Journal
from llava.mezo.journal.fingerprint import fingerprint


def around(*middles: float) -> list[float]:
    """Losses of a window around each."""
    return [middle + 0.02 * (step - WINDOW // 2) for middle in middles for step in range(WINDOW)]


@pytest.mark.parametrize(
    ("middles", "told"),
    [
        ((1.0, 1.3, 1.4), "the loss is 1.4 (medians of 25 steps) after 1 by step 25, and above all losses there"),
        ((3.0, 1.0, 2.0, 1.8), "the loss is 1.8 (medians of 25 steps) after 1 by step 50, and above all losses there"),
        ((3.0, 1.0, 1.1, 1.6, 1.6), "after 1 by step 50, and above all losses there, which are at most 1.24"),
    ],
)
def test_a_loss_that_rises_and_stays_diverges(middles: tuple[float, ...], told: str) -> None:
    why = diverging(around(*middles))
    assert why is not None and why.startswith(f"diverged by step {len(middles) * WINDOW}: ") and told in why


@pytest.mark.parametrize(
    "middles",
    [
        (1.0, 1.3, 1.2),  # within the spread of the best window
        (1.0, 1.2, 1.3),
        (1.0, 0.6, 0.4),  # it falls
        (3.0, 1.0, 1.6, 1.1),  # it was high for a while
        (3.0, 1.0, 1.4, 1.4),  # no quarter of what it has fallen
        (1.0, 1.6),  # too short to tell
        (),
    ],
)
def test_nothing_else_does(middles: tuple[float, ...]) -> None:
    assert diverging(around(*middles)) is None


def test_a_few_large_losses_are_no_divergence() -> None:
    losses = around(1.0, 1.0, 1.0)
    losses[-WINDOW // 2 :] = [1e6] * (WINDOW // 2)
    assert diverging(losses) is None


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
    assert str(journal_diverges(tmp_path / "rising")).startswith(f"diverged by step {3 * WINDOW}: the loss is")
    assert journal_diverges(tmp_path / "steady") is None


def test_a_journal_that_does_not_check_is_for_the_run_to_tell(tmp_path: Path) -> None:
    journal_of(tmp_path, 3 * WINDOW, lambda step: 1.1**step)
    file = tmp_path / JOURNAL_FOLDER / "records.bin"
    file.write_bytes(b"\1" + file.read_bytes()[1:])
    assert journal_diverges(tmp_path) is None
