"""The one exception for wrong input, and how a command shows it."""

from __future__ import annotations

import argparse
import errno
import functools
import re
import sys
from collections.abc import Callable, Collection, Mapping
from typing import Any

from llava.mezo.errors import InputError, naming

__all__ = [
    "EXIT_BAD_INPUT",
    "EXIT_DIVERGED",
    "EXIT_LOST",
    "EXIT_SIGNAL",
    "InputError",
    "command",
    "command_with",
    "in_own_flags",
    "is_full_disk",
    "naming",
    "short",
]

EXIT_BAD_INPUT = 2
EXIT_DIVERGED, EXIT_LOST, EXIT_SIGNAL = 3, 4, 130
"""Of training: the loss, another process of the run, a signal that asked for the end."""
LONGEST = 200


def short(value: object) -> str:
    """The text of a value for a message; of a long one, its beginning and its end."""
    text = str(value)
    half = (LONGEST - 3) // 2
    return text if len(text) <= LONGEST else f"{text[:half]}...{text[-half:]}"


def in_one_line(error: object) -> str:
    """What an exception says, its lines one behind the other."""
    return " ".join(line.strip() for line in str(error).splitlines() if line.strip())


_FLAG = re.compile(r"`[^`]*`|(?<![\w-])--([A-Za-z][\w-]*)")  # what stands in backticks is a command of its own


def in_own_flags(text: str, known: Collection[str], names: Mapping[str, str]) -> str:
    """A message of code that commands share, with the flags of one command.

    Args:
        known: the command's flags, each with its dashes.
        names: what it calls a flag of train.py that goes by another name here.

    Returns:
        The message; a flag that the command has by no name stands without dashes, as the setting that it is.
    """

    def own(match: re.Match[str]) -> str:
        name = match[1]
        if name is None:
            return match[0]
        spellings = (name, names.get(name, name), name.replace("_", "-"), name.replace("-", "_"))
        return next((f"--{one}" for one in spellings if f"--{one}" in known), name)

    return _FLAG.sub(own, text)


_FULL = (errno.ENOSPC, errno.EDQUOT)


def is_full_disk(error: BaseException) -> bool:
    """Whether this is for want of room, which safetensors and tokenizers tell of in words alone."""
    return getattr(error, "errno", None) in _FULL or any(f"(os error {number})" in str(error) for number in _FULL)


def command(main: Callable[..., Any]) -> Callable[..., Any]:
    """Make `main` an entry point: an `InputError`, or a full disk, becomes one line on stderr and exit code 2."""
    return _entry(main, str)


def command_with(
    parser: Callable[[], argparse.ArgumentParser], **names: str
) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """As `command`, for one that uses code of training: its errors name the flags of `parser`, see `in_own_flags`."""

    def told(error: InputError) -> str:
        return in_own_flags(str(error), parser()._option_string_actions, names)

    return lambda main: _entry(main, told)


def _entry(main: Callable[..., Any], told: Callable[[InputError], str]) -> Callable[..., Any]:
    @functools.wraps(main)
    def run(*args: Any, **kwargs: Any) -> Any:
        try:
            return main(*args, **kwargs)
        except InputError as error:
            sys.stderr.write(f"error: {in_one_line(told(error))}\n")
            sys.exit(EXIT_BAD_INPUT)
        except Exception as error:
            if not is_full_disk(error):
                raise
            why = "make room, or choose another folder for what is written, and give the same command again"
            sys.stderr.write(f"error: the disk is full ({in_one_line(error)}): {why}\n")
            sys.exit(EXIT_BAD_INPUT)

    return run
