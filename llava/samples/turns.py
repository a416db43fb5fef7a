"""The turns of a record in one form, whatever form the file uses.

In a file a turn is `{"from", "value"}` or `{"role", "content"}`; what it says is a text, or typed parts (`parts.py`).
Inside the tree a turn is `{"from": "human" | "gpt" | "system" | other, "value": text}`. Records are never changed.
"""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from typing import Any

from llava.constants import DEFAULT_IM_END_TOKEN, DEFAULT_IM_START_TOKEN, DEFAULT_IMAGE_TOKEN
from llava.errors import InputError
from llava.samples.parts import content_text, turn_content

Turn = dict[str, str]

HUMAN = "human"
ANSWER = "gpt"
SYSTEM = "system"
NOISE_MARK = "QA_GT_caption_based_noisy"
_ROLES = {"user": HUMAN, "assistant": ANSWER}
OTHER_NAMES = {"conversations": ("messages", "conversation"), "image": ("images",), "video": ("videos",)}
"""Keys of records that are read as another one where that is missing: other tools write them, and they are plain."""

_NEAR_CONVERSATIONS = ("conversations", "messages", "dialogue", "dialogs", "turns", "chat")


def names_of(key: str) -> tuple[str, ...]:
    """What a record may call a key, the key itself first."""
    return (key, *OTHER_NAMES[key])


def check_text(text: str, what: str) -> None:
    """`InputError` for text that no file can hold; `what` says where it stands."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise InputError(f"{what} has half a character (a lone surrogate) at place {error.start}") from error


def written_turns(record: Mapping[str, Any]) -> Any:
    """The record's turns as they stand in the file, or None."""
    return next((record[name] for name in names_of("conversations") if record.get(name) is not None), None)


def record_turns(record: Mapping[str, Any]) -> list[Turn]:
    """The record's turns, checked, in one form. Raises `InputError` naming the turn."""
    turns = written_turns(record)
    if turns is None:
        keys = [key for key in record if record[key] is not None]
        near = [key for key in keys if difflib.get_close_matches(key.strip().lower(), _NEAR_CONVERSATIONS, cutoff=0.8)]
        hint = f" (did you mean it by {near[0]!r:.80}?)" if near else ""
        raise InputError(f"no `conversations`{hint}; a record needs a list of turns of `from` and `value`")
    if not isinstance(turns, list) or not turns:
        raise InputError(f"`conversations` must be a non-empty list of turns, got {turns!r:.80}")
    return [_checked_turn(turn, number) for number, turn in enumerate(turns)]


def _checked_turn(turn: Any, number: int) -> Turn:
    if not isinstance(turn, dict):
        raise InputError(f"turn {number} must be an object with `from` and `value`, got {turn!r:.80}")
    role = next((turn[key] for key in ("from", "role") if turn.get(key) is not None), None)
    value = turn_content(turn)
    if isinstance(value, list):
        value = content_text(value, number)
    if not isinstance(role, str) or not isinstance(value, str):
        raise InputError(
            f"turn {number} needs texts under `from` and `value` (or `role` and `content`, a text or typed parts), "
            f"got {turn!r:.80}"
        )
    known = (HUMAN, ANSWER, SYSTEM, *_ROLES)
    if role not in known and role.strip().lower() in known:
        raise InputError(f"turn {number} is from {role!r}: did you mean {role.strip().lower()!r}?")
    check_text(value, f"turn {number}")
    check_text(role, f"the role of turn {number}")
    return {"from": _ROLES.get(role, role), "value": value}


def split_system(turns: Sequence[Turn]) -> tuple[str | None, Sequence[Turn]]:
    """(text of a leading system turn or None, the other turns from the first human one on).

    As in LLaVA-NeXT, a conversation whose first turn is not human loses that turn.
    """
    system = None
    if turns and turns[0]["from"] == SYSTEM:
        system, turns = turns[0]["value"], turns[1:]
    if turns and turns[0]["from"] != HUMAN:
        turns = turns[1:]
    return system, turns


def count_image_marks(turns: Sequence[Turn]) -> int:
    """Number of `<image>` marks in all turns that are used, a leading system turn among them."""
    system, others = split_system(turns)
    return sum(text.count(DEFAULT_IMAGE_TOKEN) for text in [system or "", *(turn["value"] for turn in others)])


def place_image_marks(turns: Sequence[Turn], use_im_start_end: bool = False) -> list[Turn]:
    """New turns in which a single `<image>` mark comes first, on a line of its own.

    Turns with several marks keep them where they are. With `use_im_start_end` every mark is wrapped in
    `<im_start>` and `<im_end>`. A label of noisy captions, which LLaVA's data carries as text, is taken out.
    """
    return [turn | {"value": _place(turn["value"], use_im_start_end)} for turn in turns]


def _place(text: str, use_im_start_end: bool) -> str:
    if text.count(DEFAULT_IMAGE_TOKEN) == 1 and not text.startswith(DEFAULT_IMAGE_TOKEN):
        text = f"{DEFAULT_IMAGE_TOKEN}\n{text.replace(DEFAULT_IMAGE_TOKEN, '').strip()}".strip()
    if use_im_start_end:
        text = text.replace(DEFAULT_IMAGE_TOKEN, f"{DEFAULT_IM_START_TOKEN}{DEFAULT_IMAGE_TOKEN}{DEFAULT_IM_END_TOKEN}")
    return text.replace(NOISE_MARK, "")
