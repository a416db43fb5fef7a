"""The one exception for wrong input, and how a command shows it."""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable
from typing import Any

from llava.mezo.errors import InputError

__all__ = ["EXIT_BAD_INPUT", "InputError", "command"]

EXIT_BAD_INPUT = 2


def command(main: Callable[..., Any]) -> Callable[..., Any]:
    """Make `main` an entry point: an `InputError` becomes one line on stderr and exit code 2."""

    @functools.wraps(main)
    def run(*args: Any, **kwargs: Any) -> Any:
        try:
            return main(*args, **kwargs)
        except InputError as error:
            sys.stderr.write(f"error: {' '.join(str(error).splitlines())}\n")  # a value may have more than one line
            sys.exit(EXIT_BAD_INPUT)

    return run
