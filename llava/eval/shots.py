"""In-context learning: answered records of the training set in front of each question.

As in the MeZO paper (Malladi et al. 2023, section 3 and appendix E): a few demonstrations are drawn from the training
set, once for a whole evaluation, and stand before every question in the same form. Here each is a round of the
conversation, with its picture. Two things follow: several pictures in a prompt are padded to squares, as in training,
where a single one may be cut into tiles; and answers are decoded, freely or among those of a list.
"""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from llava.errors import InputError
from llava.eval.generation import Question
from llava.eval.questions import question_and_reference


@dataclass(frozen=True)
class Demonstration:
    """A question with its answer."""

    question: Question
    answer: str


def draw(records: Sequence[Mapping[str, Any]], shots: int, seed: int, image_folder: str | Path) -> list[Demonstration]:
    """`shots` records by `seed`, in the order drawn; fewer shots with the same seed are the first of them.

    Raises:
        InputError: fewer records than shots, or a drawn one without a question and an answer.
    """
    if not 0 <= shots <= len(records):
        raise InputError(f"--shots {shots}: the training set has {len(records)} records; give 0 to {len(records)}")
    order = random.Random(seed).sample(range(len(records)), len(records))
    drawn = [question_and_reference(records[k], k, image_folder) for k in order[:shots]]
    return [Demonstration(question, answer) for question, answer in drawn]


def with_demonstrations(question: Question, demonstrations: Sequence[Demonstration]) -> Question:
    """The question with demonstrations as the rounds before it.

    Raises:
        InputError: a demonstration whose system text is not the question's; a conversation has one.
    """
    turns, images = [], []
    for one in demonstrations:
        if one.question.system != question.system:
            raise InputError(
                f"{question.name}: its system text differs from that of the demonstration {one.question.name}; "
                "give --shots-data records with the same one"
            )
        turns += [*one.question.turns[:-1], (one.question.turns[-1][0], one.answer)]
        images += one.question.images
    return replace(question, turns=[*turns, *question.turns], images=[*images, *question.images])
