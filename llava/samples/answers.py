"""The different answers of a set of records, for what chooses among them."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from llava.constants import IGNORE_INDEX
from llava.conversation import Conversation
from llava.errors import InputError, short
from llava.mezo.answer_tree import AnswerTree
from llava.samples.preprocess import encode
from llava.samples.record import Record
from llava.samples.turns import ANSWER, Turn

MOST_ANSWERS = 1000
"""A set with more different ones has no fixed list of answers."""


def different_answers(records: Iterable[Record]) -> list[str]:
    """Of all turns, in the order in which they first come.

    Raises:
        InputError: a single answer, or more than `MOST_ANSWERS`.
    """
    turns = (turn for record in records for turn in record.turns)
    answers = list(dict.fromkeys(turn["value"] for turn in turns if turn["from"] == ANSWER))
    if not 2 <= len(answers) <= MOST_ANSWERS:
        some = ", ".join(short(answer) for answer in answers[:3])
        raise InputError(
            f"it has {len(answers)} different answers ({some}, ...); to choose among them takes 2 to {MOST_ANSWERS}"
        )
    return answers


def answer_tree(answers: Iterable[str], tokenizer: Any, template: Conversation) -> AnswerTree:
    """The answers with their end marks, as training supervises them."""
    return AnswerTree([_tokens(answer, tokenizer, template) for answer in answers])


def _tokens(answer: str, tokenizer: Any, template: Conversation) -> list[int]:
    turns: list[Turn] = [{"from": "human", "value": "?"}, {"from": ANSWER, "value": answer}]
    labels = encode(turns, tokenizer, False, template).answer_labels
    return [label for label in labels if label != IGNORE_INDEX]
