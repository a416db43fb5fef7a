"""When an answer counts as correct: one function per metric, each `(prediction, reference) -> bool`."""

from __future__ import annotations

import math
import re
from collections.abc import Callable

from llava.errors import InputError

Metric = Callable[[str, str], bool]

RELATIVE_TOLERANCE = 0.05
_OPTION_MARK = re.compile(r"^(?:\(([a-z])\)|([a-z])[.):])\s*")


def normalise(text: str) -> str:
    """Lower case, no blanks around, and without one trailing full stop or semicolon."""
    text = text.strip().lower()
    return text[:-1] if text.endswith((".", ";")) else text


def exact(prediction: str, reference: str) -> bool:
    """Equal after `normalise`."""
    return normalise(prediction) == normalise(reference)


def choice(prediction: str, reference: str) -> bool:
    """The exact match, also when one side has its option letter in front (`B. acute`, `(b) acute`, `b) acute`).

    A reference that is a letter alone is matched by that letter with or without the option's text behind it.
    """
    if exact(prediction, reference):
        return True
    (letter, given), (wanted_letter, wanted) = _split_option(prediction), _split_option(reference)
    if re.fullmatch("[a-z]", wanted):
        return letter == wanted
    return given == wanted and (not letter or not wanted_letter or letter == wanted_letter)


def relaxed(prediction: str, reference: str) -> bool:
    """ChartQA's rule: a number may be off by 5 % of the reference, anything else must match exactly.

    A per cent sign divides by 100, commas between digits are dropped; a reference of zero allows no deviation.
    """
    given, wanted = _number(normalise(prediction)), _number(normalise(reference))
    if given is None or wanted is None:
        return exact(prediction, reference)
    return abs(given - wanted) <= RELATIVE_TOLERANCE * abs(wanted)


METRICS: dict[str, Metric] = {"exact": exact, "choice": choice, "relaxed": relaxed}


def metric_named(name: str) -> Metric:
    """The function for a value of `--metric`.

    Raises:
        InputError: no such metric; the message lists the known ones.
    """
    if name not in METRICS:
        raise InputError(f"--metric {name}: unknown; choose one of {', '.join(METRICS)}")
    return METRICS[name]


def _split_option(text: str) -> tuple[str, str]:
    """Option letter (or nothing) and the rest of a normalised answer; `(b)` alone counts as the text `b`."""
    text = normalise(text)
    mark = _OPTION_MARK.match(text)
    if mark is None:
        return ("", text) if len(text) != 1 else (text, text)
    letter = mark.group(1) or mark.group(2)
    return letter, text[mark.end() :] or letter


def _number(text: str) -> float | None:
    percent = text.endswith("%")
    text = re.sub(r"(?<=\d),(?=\d{3}(?!\d))", "", text.rstrip("%").strip())
    try:
        value = float(text)
    except ValueError:
        return None
    if not math.isfinite(value) or "_" in text:
        return None
    return value / 100 if percent else value
