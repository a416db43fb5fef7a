"""Turns whose content is a list of typed parts, as chat formats of Hugging Face, TRL and others write them.

    {"role": "user", "content": [{"type": "image", "image": "a.png"}, {"type": "text", "text": "What is it?"}]}

| part | means |
| --- | --- |
| `{"type": "text", "text": T}` | the text T |
| `{"type": "image", "image": P}` (or `path`), video likewise | an `<image>` mark, and the file P |
| `{"type": "image"}` | a mark; its file is the next of the record's `images` |
| `{"type": "image", "index": K}` | a mark; its file is number K (from 0) of the record's `images` |

Keys whose value is null are as if they were missing: a table has all of them in every row. A mark stands apart from
what is before and behind it: a newline is put there, unless there is white space. Texts that follow each other are
joined without anything between them.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from llava.constants import DEFAULT_IMAGE_TOKEN
from llava.errors import InputError, short

TEXT, MEDIA = "text", ("image", "video")
KNOWN = {TEXT: ("type", "text"), **{kind: ("type", kind, "path", "index") for kind in MEDIA}}
"""The keys of a part, by its type."""
Given = Mapping[str, Sequence[Any]]


@dataclass(frozen=True)
class Mark:
    """An image or a video in a text: "image" or "video", its file where the part names one, or a place in the list."""

    kind: str
    file: Any = None
    index: int | None = None


def content_text(content: Sequence[Any], number: int) -> str:
    """The text of turn `number`, with an `<image>` mark for each image and video. Raises `InputError`."""
    if not content:
        raise InputError(f"turn {number} has an empty list as its content; give a text or typed parts")
    text, after_mark = "", False
    for place, part in enumerate(content):
        found = _read(part, f"turn {number}, part {place}")
        is_mark = isinstance(found, Mark)
        piece = DEFAULT_IMAGE_TOKEN if isinstance(found, Mark) else found
        if piece and text and (is_mark or after_mark) and not (text[-1].isspace() or piece[0].isspace()):
            text += "\n"
        text, after_mark = text + piece, is_mark or (after_mark and not piece)
    return text


def parts_media(turns: Any, given: Given) -> Given:
    """The files that a record shows, by kind, in the order of its marks; empty where its turns have no such parts.

    Args:
        turns: as they stand in the file. What is wrong with a turn, `content_text` tells.
        given: the record's lists beside its turns, which parts without a file refer to.

    Raises:
        InputError: parts and lists that do not fit each other.
    """
    marks = list(_marks(turns))
    kinds = {mark.kind for mark, is_part in marks if is_part}
    if not kinds:
        return {}
    if len(kinds) > 1 or any(given[kind] for kind in given if kind not in kinds):
        raise InputError("a record shows images or one video, not both; make two records of it")
    [kind] = kinds
    files = given[kind]
    if all(mark.file is None and mark.index is None for mark, _ in marks):
        if not files:
            raise InputError(f"a part is an {kind} without a file: give it `{kind}`, or the record a list `{kind}s`")
        return {}
    return {kind: _resolved([mark for mark, _ in marks], files, kind)}


def _resolved(marks: Sequence[Mark], files: Sequence[Any], kind: str) -> list[Any]:
    """The file of every mark; all of the list are used."""
    open_ones = sum(mark.file is None and mark.index is None for mark in marks)
    numbered = {mark.index for mark in marks if mark.index is not None}
    wanted = set(range(len(files)))
    if (numbered and (open_ones or numbered != wanted)) or (not numbered and open_ones != len(files)):
        named = f"the numbers {short(', '.join(map(str, sorted(numbered))))}" if numbered else f"{open_ones}"
        raise InputError(
            f"its parts take {named} of `{kind}s`, which has {len(files)}; each is shown once or by its number"
        )
    rest = iter(files)
    return [
        mark.file if mark.file is not None else files[mark.index] if mark.index is not None else next(rest)
        for mark in marks
    ]


def _marks(turns: Any) -> Iterator[tuple[Mark, bool]]:
    """All marks of a record in order, and whether each is a part; the others are written in a text."""
    for turn in turns if isinstance(turns, list) else []:
        content = turn_content(turn) if isinstance(turn, dict) else None
        for number, part in enumerate(content if isinstance(content, list) else [content]):
            try:
                found = part if isinstance(part, str) else _read(part, f"part {number}")
            except InputError:
                continue
            if isinstance(found, Mark):
                yield found, True
            else:
                yield from [(Mark("image"), False)] * found.count(DEFAULT_IMAGE_TOKEN)


def turn_content(turn: Mapping[str, Any]) -> Any:
    """What a turn says, under any of its names; null is as good as missing."""
    return next((turn[key] for key in ("value", "content") if turn.get(key) is not None), None)


def _read(part: Any, where: str) -> str | Mark:
    """The text of a part, or its mark."""
    if not isinstance(part, dict):
        raise InputError(f"{where} must be an object with a `type`, got {part!r:.80}")
    kind = part.get("type")
    if not isinstance(kind, str) or kind not in KNOWN:
        raise InputError(f"{where} has the type {kind!r:.80}; allowed: {', '.join(KNOWN)}")
    unknown = [key for key in part if key not in KNOWN[kind] and part[key] is not None]
    if unknown:
        raise InputError(
            f"{where}, of type {kind}, has the key {short(repr(unknown[0]))}; allowed: {', '.join(KNOWN[kind])}"
        )
    if kind == TEXT:
        text = part.get("text")
        if not isinstance(text, str):
            raise InputError(f"{where} needs a text under `text`, got {text!r:.80}")
        return text
    return _mark(part, kind, where)


def _mark(part: Mapping[str, Any], kind: str, where: str) -> Mark:
    files = [part[key] for key in (kind, "path") if part.get(key) is not None]
    index = part.get("index")
    if len(files) + (index is not None) > 1:
        raise InputError(f"{where} has several of `{kind}`, `path` and `index`; give one")
    if index is not None and (not isinstance(index, int) or isinstance(index, bool) or index < 0):
        raise InputError(f"{where}: `index` must be a number from 0 on, got {index!r:.80}")
    return Mark(kind, files[0] if files else None, index)
