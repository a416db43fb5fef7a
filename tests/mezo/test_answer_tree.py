"""The loss among a closed set of answers: what constrained decoding gives, from one forward."""

from __future__ import annotations

import math

import pytest
import torch
from torch.nn import functional

from llava.mezo.answer_tree import AnswerTree
from llava.mezo.errors import InputError
from llava.mezo.head import IGNORED

END = 9
ANSWERS = [[3, END], [4, 5, END], [4, 6, END], [7, 7, 7, END]]


def plain(states: torch.Tensor, head: torch.Tensor, answer: list[int]) -> float:
    """-log of an answer's probability, by looking through the list at each of its tokens."""
    loss = 0.0
    for place, token in enumerate(answer):
        allowed = sorted({other[place] for other in ANSWERS if other[:place] == answer[:place]})
        logits = functional.linear(states[place], head)[allowed].double()
        loss -= float(logits.log_softmax(0)[allowed.index(token)])
    return loss


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_loss_is_of_the_answers_alone(dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    tree, head = AnswerTree(ANSWERS), torch.randn(12, 8).to(dtype)
    right = [ANSWERS[2], ANSWERS[0], ANSWERS[3], ANSWERS[1]]
    targets = torch.tensor([token for answer in right for token in answer] + [IGNORED, IGNORED])
    states = torch.randn(len(targets), 8).to(dtype)
    found, first = [], 0
    for answer in right:
        found.append(plain(states[first:].float(), head.float(), answer))
        first += len(answer)
    with torch.autocast("cpu", torch.bfloat16):
        loss = tree.loss(states, head, tree.places(targets))
    assert loss.dtype == torch.float32
    assert float(loss) == pytest.approx(sum(found) / 4, rel=1e-6), "logits were rounded"


def test_probabilities_of_all_answers_sum_to_one() -> None:
    torch.manual_seed(1)
    tree, head, states = AnswerTree(ANSWERS), torch.randn(12, 8), torch.randn(1, 8).expand(4, 8)
    losses = [tree.loss(states[: len(one)], head, tree.places(torch.tensor(one))) for one in ANSWERS]
    assert sum(math.exp(-float(loss)) for loss in losses) == pytest.approx(1)


def test_a_row_that_no_answer_has_does_not_count() -> None:
    torch.manual_seed(2)
    tree, head, states = AnswerTree(ANSWERS), torch.randn(12, 8), torch.randn(2, 8)
    places, other = tree.places(torch.tensor(ANSWERS[0])), head.clone()
    other[[0, 1, 2, 8, 10, 11]] = torch.nan
    assert torch.equal(tree.loss(states, head, places), tree.loss(states, other, places))


def test_what_may_come_next() -> None:
    tree = AnswerTree(ANSWERS)
    assert sorted(tree.next([])) == [3, 4, 7] and sorted(tree.next([4])) == [5, 6] and tree.next([4, 5]) == [END]
    assert tree.next([3, END]) == tree.next([8]) == tree.next([8, 3]) == []
    assert tree.longest == 4


@pytest.mark.parametrize("targets", [[5, END], [3, 3], [4, 5, 4], [IGNORED, 8]])
def test_what_is_no_answer_is_refused(targets: list[int]) -> None:
    with pytest.raises(InputError, match="none of the answers: --model_max_length cuts one off"):
        AnswerTree(ANSWERS).places(torch.tensor(targets))


def test_answers_without_an_end_are_refused() -> None:
    with pytest.raises(InputError, match="beginning of another"):
        AnswerTree([[3], [3, 4]])
