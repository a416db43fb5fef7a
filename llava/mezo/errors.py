"""What is wrong with something that a person gave; the message is complete on its own, with what is allowed."""

from __future__ import annotations


class InputError(ValueError):
    """A flag, file or record cannot be used as given; the message says which one and what is allowed."""


class JournalError(InputError):
    """A journal that is damaged, belongs to something else or cannot be written; the message says what is the case."""
