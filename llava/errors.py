"""The one exception for wrong input, and how a command shows it.

`InputError` is raised wherever something that a person gave is wrong (a flag, a file, a record).
Its message is complete on its own: what was given, what is allowed, which flag to change.
"""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable
from typing import Any

EXIT_BAD_INPUT = 2


class InputError(ValueError):
    """A flag, file or record cannot be used as given; the message says which one and what is allowed."""


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
