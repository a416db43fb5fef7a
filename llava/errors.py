"""The one exception for wrong input, and how a command shows it."""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable
from typing import Any

from llava.mezo.errors import InputError

__all__ = ["EXIT_BAD_INPUT", "InputError", "command", "short"]

EXIT_BAD_INPUT = 2
LONGEST = 200


def short(value: object) -> str:
    """The text of a value for a message; of a long one, its beginning and its end."""
    text = str(value)
    half = (LONGEST - 3) // 2
    return text if len(text) <= LONGEST else f"{text[:half]}...{text[-half:]}"


def command(main: Callable[..., Any]) -> Callable[..., Any]:
    """Make `main` an entry point: an `InputError` becomes one line on stderr and exit code 2."""

    @functools.wraps(main)
    def run(*args: Any, **kwargs: Any) -> Any:
        try:
            return main(*args, **kwargs)
        except InputError as error:
            sys.stderr.write(f"error: {error}\n")
            sys.exit(EXIT_BAD_INPUT)

    return run
