"""The space of a sweep: which flags take which values.

`NAME=VALUES`, divided by commas, or a JSON or YAML file that maps NAME to VALUES, where NAME is a flag of train.py and
VALUES

    log:LOW:HIGH        a number whose logarithm is drawn evenly
    uniform:LOW:HIGH    a number drawn evenly
    A|B|C               one of these; in a file also a list

Whether numbers are whole follows from the flag.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import yaml

from llava.errors import InputError
from llava.train.flags.parsing import flag_types

FORMS = "log:LOW:HIGH, uniform:LOW:HIGH or A|B|C"
OF_THE_SWEEP = ("output_dir", "overwrite_output_dir", "resume_from_checkpoint", "eval_data_path", "eval_metric")
"""Flags that a sweep sets, or that make its runs comparable."""
DIGITS = 4
"""Significant ones of a number that was drawn."""


class Drawing(Protocol):
    """What draws values; a trial of Optuna."""

    def suggest_float(self, name: str, low: float, high: float, *, log: bool = False) -> float:
        """A number."""

    def suggest_int(self, name: str, low: int, high: int, *, log: bool = False) -> int:
        """A whole number."""

    def suggest_categorical(self, name: str, choices: Sequence[str]) -> Any:
        """One of the choices."""


@dataclass(frozen=True)
class Parameter:
    """A flag, without its dashes, and its values: `choices`, or those from `low` to `high`, both included."""

    name: str
    choices: tuple[str, ...] = ()
    low: float = 0.0
    high: float = 0.0
    log: bool = False
    whole: bool = False

    def draw(self, trial: Drawing) -> str:
        """A value, as it stands on a command line."""
        if self.choices:
            return str(trial.suggest_categorical(self.name, self.choices))
        if self.whole:
            return str(trial.suggest_int(self.name, int(self.low), int(self.high), log=self.log))
        return f"{trial.suggest_float(self.name, self.low, self.high, log=self.log):.{DIGITS}g}"

    def ends(self) -> tuple[str, ...]:
        """Values that show whether all of them can be used: all choices, or both limits."""
        return self.choices or tuple(
            f"{value:.{DIGITS}g}" if not self.whole else str(int(value)) for value in (self.low, self.high)
        )


def parse_space(text: str) -> list[Parameter]:
    """The parameters of a space that is written out, or is in a file.

    Raises:
        InputError: unknown flags, a flag that a sweep sets itself, or values that cannot be read; with what is allowed.
    """
    entries = _entries(text)
    if not entries:
        raise InputError("--space is empty: give at least one NAME=VALUES")
    types = flag_types()
    return [_parameter(name, values, types) for name, values in entries.items()]


def _entries(text: str) -> dict[str, Any]:
    if Path(text).is_file():
        try:
            found = yaml.safe_load(Path(text).read_text(encoding="utf-8"))
        except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
            raise InputError(f"--space {text}: cannot be read ({error})") from error
        if not isinstance(found, Mapping):
            raise InputError(f"--space {text}: holds no mapping of NAME to VALUES ({FORMS})")
        return {str(name): values for name, values in found.items()}
    entries: dict[str, Any] = {}
    for part in re.split(r",(?=\s*[-\w]+=)", text):
        name, equals, values = part.strip().partition("=")
        if not equals:
            raise InputError(f"--space {text!r}: neither a file nor NAME=VALUES, with VALUES {FORMS}")
        name = name.strip().lstrip("-")
        if name in entries:
            raise InputError(f"--space: {name} is there twice")
        entries[name] = values.strip()
    return entries


def _parameter(name: str, values: Any, types: Mapping[str, Any]) -> Parameter:
    if name in OF_THE_SWEEP:
        raise InputError(f"--space {name}: a sweep has one --{name} for all trials")
    if name not in types:
        raise InputError(f"--space {name}: train.py has no flag --{name}; docs/flags.md lists them")
    if isinstance(values, Sequence) and not isinstance(values, str):
        return _choices(name, [str(value) for value in values])
    text = str(values)
    kind, *limits = text.split(":")
    if kind in ("log", "uniform") and limits:
        return _range(name, text, kind == "log", limits, types[name])
    return _choices(name, [value.strip() for value in text.split("|")])


def _choices(name: str, values: Sequence[str]) -> Parameter:
    if not values or "" in values:
        raise InputError(f"--space {name}: a value is empty; give {FORMS}")
    if len(set(values)) < len(values):
        raise InputError(f"--space {name}: a value is there twice ({'|'.join(values)})")
    return Parameter(name, tuple(values))


def _range(name: str, text: str, log: bool, limits: Sequence[str], kind: Any) -> Parameter:
    if kind not in (int, float):
        raise InputError(f"--space {name}={text}: --{name} is no number; give its values as A|B|C")
    try:
        low, high = (kind(limit) for limit in limits)
    except ValueError as error:
        what = "two whole numbers" if kind is int else "two numbers"
        raise InputError(f"--space {name}={text}: {what} are needed, as log:LOW:HIGH or uniform:LOW:HIGH") from error
    if not (math.isfinite(low) and math.isfinite(high) and low < high):
        raise InputError(f"--space {name}={text}: LOW must be below HIGH, both finite")
    if log and low <= 0:
        raise InputError(f"--space {name}={text}: with log, LOW must be above 0; for 0 as well, give A|B|C or uniform")
    return Parameter(name, low=low, high=high, log=log, whole=kind is int)
