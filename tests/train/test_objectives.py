"""Objectives that are not a loss."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.nn import functional

from llava.errors import InputError
from llava.mezo.head import token_errors
from llava.mezo.journal.files import Journal
from llava.mezo.trained import TrainedWeights
from llava.train import objectives
from llava.train.flags.parsing import parse_arguments
from llava.train.train import train

Flags = Callable[..., list[str]]
SEEN: list[tuple[list[str], list[str], list[Any]]] = []


def counted(predictions: Sequence[str], references: Sequence[str], records: Sequence[Mapping[str, Any]]) -> list[float]:
    """An objective of the tests: the share of the answer's length that is reached."""
    SEEN.append((list(predictions), list(references), [record["id"] for record in records]))
    return [min(1.0, len(one) / 40) for one in predictions]


def too_few(predictions: Sequence[str], references: Sequence[str], records: Sequence[Any]) -> list[float]:
    return [0.0]


@pytest.fixture()
def flags(text_run: Flags) -> Flags:
    return functools.partial(text_run, max_steps=3, per_device_train_batch_size=2, zo_eps=0.05)


def test_scores() -> None:
    assert objectives.exact_match(["Yes.", "no"], ["yes", "yes"], [{}, {}]) == [1, 0]
    assert objectives.f1(["a red car", "", "x"], ["the red car", "", "y"], [{}] * 3) == pytest.approx([2 / 3, 1, 0])


def test_errors_are_those_of_the_whole_logits() -> None:
    torch.manual_seed(0)
    states, head, targets = torch.randn(50, 8), torch.randn(300, 8), torch.randint(0, 300, (50,))
    targets[:20] = functional.linear(states, head)[:20].argmax(1)
    targets[5] = -100
    right = (functional.linear(states, head).argmax(1) == targets).float()
    expected = 1 - right.sum() / 49
    for rows in (7, 64, 300):
        assert float(token_errors(states, head, targets, rows=rows)) == pytest.approx(float(expected))


@pytest.mark.slow
@pytest.mark.parametrize("objective", ["accuracy", "exact_match", "f1", f"{__name__}:counted"])
def test_a_run_takes_it_in_place_of_the_loss(objective: str, flags: Flags, tmp_path: Path) -> None:
    SEEN.clear()
    train(argv=flags(zo_objective=objective))
    records = Journal.read(tmp_path / "out" / "mezo_journal").records
    assert len(records) == 3 and all(0 <= loss <= 1 for record in records for loss in record.losses)
    if objective.endswith("counted"):
        assert len(SEEN) == 6 and len({loss for record in records for loss in record.losses}) > 1
        for predictions, references, ids in SEEN:
            assert len(predictions) == 2 and references == [f"A {k % 2}" for k in ids]
        expected = [1 - sum(min(1.0, len(text) / 40) for text in predictions) / 2 for predictions, _, _ in SEEN]
        assert [loss for record in records for loss in record.losses] == expected


def test_perturbed_weights_are_made_once_for_all_tokens(
    flags: Flags, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[tuple[int, ...]] = []
    perturbed = TrainedWeights.perturbed

    def noted(self: TrainedWeights, numbers: Sequence[int], *rest: Any) -> Any:
        made.append(tuple(numbers))
        return perturbed(self, numbers, *rest)

    monkeypatch.setattr(TrainedWeights, "perturbed", noted)
    train(argv=flags(zo_objective=f"{__name__}:counted", max_steps=1))
    assert len(SEEN[-1][0][0]) > 0  # more than one token
    assert len(made) == 2 * len(set(made))


@pytest.mark.parametrize(
    ("objective", "message"),
    [
        ("bleu", "allowed are loss, accuracy, exact_match, f1, or MODULE:FUNCTION"),
        ("nowhere:f", "cannot be imported"),
        ("math:nothing", "cannot be imported"),
        ("math:pi", "pi is no function"),
    ],
)
def test_unknown_ones_are_refused_before_loading(objective: str, message: str, flags: Flags) -> None:
    with pytest.raises(InputError, match=message):
        parse_arguments(flags(zo_objective=objective))


def test_a_function_that_gives_too_few_numbers_is_named(flags: Flags, refused: Callable[..., str]) -> None:
    assert "the function gave 1 numbers for 2 records" in refused(train, argv=flags(zo_objective=f"{__name__}:too_few"))
