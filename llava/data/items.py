"""What a public set is read into: questions with answers, their pictures still where the set keeps them."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from llava.constants import DEFAULT_IMAGE_TOKEN
from llava.errors import InputError, naming
from llava.samples.turns import check_text


@dataclass(frozen=True)
class Item:
    """One question, mostly about one picture.

    Args:
        name: where the set has it, without the path of the source; ends up as `source` of the record.
        prompt: the whole human turn, with one `<image>` mark if there is a picture.
        answer: the whole reply, not empty.
        kind: the class or type that is counted.
        file: the picture, as an error message names it.
        read: gives the picture's bytes as they are in the set; None for a question without one.
        split: train, val or test where the set has splits of its own.

    Raises:
        InputError: no answer, or not as many marks as pictures.
    """

    name: str
    prompt: str
    answer: str
    kind: str
    file: str = ""
    read: Callable[[], bytes] | None = None
    split: str = ""

    def __post_init__(self) -> None:
        if not self.answer:
            raise InputError(f"{self.name}: the answer is empty")
        if self.prompt.count(DEFAULT_IMAGE_TOKEN) != (self.read is not None):
            raise InputError(f"{self.name}: its texts must not contain {DEFAULT_IMAGE_TOKEN}, which marks the picture")

    def picture(self) -> bytes:
        """The picture's bytes, none without one. Raises `InputError` naming record and file."""
        if self.read is None:
            return b""
        try:
            return self.read()
        except OSError as error:
            raise InputError(f"{self.name}: picture {self.file} cannot be read ({error.strerror or error})") from error

    def fingerprint(self) -> str:
        """Equal for pictures that are equal byte for byte."""
        return hashlib.sha256(self.picture()).hexdigest()


@dataclass(frozen=True)
class SourceSet:
    """All usable items of a source, how many records it has, and what was left out of them: a reason and a number."""

    items: list[Item]
    records: int
    left_out: dict[str, int] = field(default_factory=dict)


def text_field(record: Mapping[str, Any], key: str, where: str) -> str:
    """A text of a record without blanks around it. Raises `InputError` if there is none."""
    value = record.get(key)
    if not isinstance(value, str) or not value.strip():
        raise InputError(f"{where}: `{key}` must be a text that is not empty, got {value!r:.80}")
    with naming(where):
        check_text(value, f"`{key}`")
    return value.strip()
