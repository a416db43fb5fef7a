"""What is wrong with something that a person gave; the message is complete on its own, with what is allowed."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager


class InputError(ValueError):
    """A flag, file or record cannot be used as given; the message says which one and what is allowed.

    As text it is one line that any terminal shows: names from files may hold anything.
    """

    def __str__(self) -> str:
        text = super().__str__()
        if text.isprintable():
            return text
        return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


class JournalError(InputError):
    """A journal that is damaged, belongs to something else or cannot be written; the message says what is the case."""


@contextmanager
def naming(what: object) -> Iterator[None]:
    """Put `what` in front of the message of an `InputError`, or a `JournalError`, raised inside."""
    try:
        yield
    except InputError as error:
        kind = JournalError if isinstance(error, JournalError) else InputError
        raise kind(f"{what}: {error}") from error
