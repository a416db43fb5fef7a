"""LLaVA JSON records as questions with a reference answer."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from llava.errors import InputError, short
from llava.eval.generation import Question
from llava.samples.media import below
from llava.samples.record import read_record
from llava.samples.turns import ANSWER, HUMAN, place_image_marks, split_system


def question_and_reference(raw: Mapping[str, Any], number: int, image_folder: str | Path) -> tuple[Question, str]:
    """The record's last answer as the reference, everything before it as the question.

    Raises:
        InputError: no human turn with an answer, turns out of order, or a field of the wrong type.
    """
    record = read_record(raw, number)
    system, turns = split_system(record.turns)
    given = [turn["from"] for turn in record.turns]
    if turns and turns[-1]["from"] == HUMAN:
        turns = turns[:-1]
    roles = [turn["from"] for turn in turns]
    if not turns or roles != [HUMAN, ANSWER] * (len(turns) // 2):
        raise InputError(
            f"{record.name}: turns must alternate human, gpt and hold at least one of each, got {short(given)}"
        )
    if record.video is not None:
        raise InputError(f"{record.name}: videos cannot be evaluated; give images")
    said = [turn["value"] for turn in (place_image_marks(turns) if record.images else turns)]
    pairs: list[tuple[str, str | None]] = list(zip(said[::2], said[1::2], strict=True))
    pairs[-1] = (pairs[-1][0], None)
    images = [below(image_folder, image) for image in record.images]
    return Question(record.name, pairs, images, system), said[-1]


def record_id(record: Mapping[str, Any], index: int) -> Any:
    """The record's id, or its place in the file."""
    return record.get("id", index)
