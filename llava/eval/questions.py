"""LLaVA JSON records as questions with a reference answer."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from llava.constants import DEFAULT_IMAGE_TOKEN
from llava.errors import InputError
from llava.eval.generation import Question

_ROLES = {"human": "human", "user": "human", "gpt": "gpt", "assistant": "gpt"}


def question_and_reference(record: dict[str, Any], index: int, image_folder: str | Path) -> tuple[Question, str]:
    """The record's last answer as the reference, everything before it as the question.

    Raises:
        InputError: no human turn with an answer, turns out of order, or a field of the wrong type.
    """
    name = f"record {record.get('id', index)!r}"
    turns = [_turn(turn, name) for turn in _conversation(record, name)]
    system = turns[0][1] if turns[0][0] == "system" else None
    if turns[0][0] != "human":
        turns = turns[1:]
    if turns and turns[-1][0] == "human":
        turns = turns[:-1]
    roles = [role for role, _ in turns]
    if not turns or roles != ["human", "gpt"] * (len(turns) // 2):
        raise InputError(f"{name}: turns must alternate human, gpt and hold at least one of each, got {roles}")
    pairs: list[tuple[str, str | None]] = [(_tag_first(turns[k][1]), turns[k + 1][1]) for k in range(0, len(turns), 2)]
    reference = pairs[-1][1] or ""
    pairs[-1] = (pairs[-1][0], None)
    if "video" in record and "image" not in record:
        raise InputError(f"{name}: videos cannot be evaluated; give images")
    images = [Path(image_folder) / image for image in _images(record, name)]
    return Question(name, pairs, images, system), reference


def record_id(record: dict[str, Any], index: int) -> Any:
    """The record's id, or its place in the file."""
    return record.get("id", index)


def _conversation(record: dict[str, Any], name: str) -> list[Any]:
    conversation = record.get("conversations")
    if not isinstance(conversation, list) or not conversation:
        raise InputError(f"{name}: has no conversations (a list of turns with from and value)")
    return conversation


def _turn(turn: Any, name: str) -> tuple[str, str]:
    role = turn.get("from", turn.get("role")) if isinstance(turn, dict) else None
    text = turn.get("value", turn.get("content")) if isinstance(turn, dict) else None
    if not isinstance(role, str) or not isinstance(text, str):
        raise InputError(f"{name}: a turn must be an object with from and value, got {turn!r}")
    return _ROLES.get(role, role), text


def _tag_first(text: str) -> str:
    """A single tag comes first, on its own line, where training puts it too."""
    if text.count(DEFAULT_IMAGE_TOKEN) != 1 or text.startswith(DEFAULT_IMAGE_TOKEN):
        return text
    return f"{DEFAULT_IMAGE_TOKEN}\n{text.replace(DEFAULT_IMAGE_TOKEN, '').strip()}".strip()


def _images(record: dict[str, Any], name: str) -> list[str]:
    images = record.get("image", [])
    images = [images] if isinstance(images, str) else images
    if not isinstance(images, list) or not all(isinstance(image, str) for image in images):
        raise InputError(f"{name}: image must be a path or a list of paths, got {images!r}")
    return images
