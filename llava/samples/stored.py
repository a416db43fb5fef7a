"""A picture that lies in a table of records, in place of a file of its own."""

from __future__ import annotations

import hashlib
import io
from dataclasses import dataclass, field
from typing import Any, BinaryIO

Place = tuple[str | int, ...]
"""Keys and numbers that lead from a row to a value in it."""


@dataclass(frozen=True)
class StoredPicture:
    """The bytes of a picture file in a row of a table, read again each time; those of equal bytes are equal.

    Attributes:
        digest: of the bytes, in hexadecimal.
        name: how error messages call it.
        table: gives rows by number; a mapped file, so that it takes no memory.
        row: its number.
        place: where it is in the row.
    """

    digest: str
    name: str = field(compare=False)
    table: Any = field(compare=False, repr=False)
    row: int = field(compare=False)
    place: Place = field(compare=False)

    def __str__(self) -> str:
        return self.name

    def open(self) -> BinaryIO:
        """The bytes as a file."""
        value: Any = self.table[self.row]
        for key in self.place:
            value = value[key]
        return io.BytesIO(bytes_of(value))


def bytes_of(value: Any) -> bytes:
    """Those of a column of bytes, or of Hugging Face's image column, `{"bytes", "path"}`."""
    found: bytes = value["bytes"] if isinstance(value, dict) else value
    return found


def digest_of(data: bytes) -> str:
    """What tells the content of one picture file from another's."""
    return hashlib.blake2b(data, digest_size=16).hexdigest()


def json_of(value: Any) -> str:
    """For `json.dumps(..., default=json_of)` of a record that may have such pictures."""
    if isinstance(value, StoredPicture):
        return f"blake2b:{value.digest}"
    raise TypeError(f"{type(value).__name__} is no JSON")
