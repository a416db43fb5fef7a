"""A journal's header: what holds for a whole run, in JSON, and every check that it can be put to.

docs/journal_format.md describes it field by field. This module turns bytes into values and back; `files.py` has the
files.
"""

from __future__ import annotations

import json
import math
from dataclasses import asdict, dataclass, field, fields
from functools import cached_property
from typing import Any

from llava.mezo.algorithms.choice import ESTIMATORS, RULES
from llava.mezo.algorithms.course import Course
from llava.mezo.config import LARGEST_RANK, LARGEST_SEED, LARGEST_WINDOW, MOST_DIRECTIONS, NOISES, STORAGES, MeZOConfig
from llava.mezo.errors import JournalError
from llava.mezo.names import names_hash
from llava.mezo.noise import NOISE_VERSION

FORMAT, VERSION = "mezo-journal", NOISE_VERSION
"""The version is that of the noise, without which records mean nothing."""
LARGEST_HEADER = 2**26
STEP_BYTES, NUMBER_BYTES, CHECKSUM_BYTES = 8, 8, 4
"""Of a record's step and flags, of each of its numbers, of its checksum."""


@dataclass(frozen=True)
class Group:
    """A parameter group."""

    parameters: tuple[int, ...]
    """Numbers of its parameters."""
    weight_decay: float
    rate: int
    """Which of a record's learning rates is its own."""


@dataclass(frozen=True)
class Parent:
    """The journal that a run branched off from; a copy of it, up to there, lies in the folder `parent`."""

    steps: int
    """How many of its records come before this journal's first."""
    checksum: int
    """Checksum of the last of them, or of its header."""


@dataclass(frozen=True)
class Header:
    """What holds for a whole run."""

    model: str
    """Where the base model came from: a folder or a hub id. For people; `fingerprint` decides."""
    fingerprint: str
    """Of the trained parameters before the first record, see `fingerprint.py`."""
    names: tuple[str, ...]
    """Canonical names of the trained parameters, in the order of their numbers."""
    dtypes: tuple[str, ...]
    """Dtype of each in the model, as "bfloat16"."""
    shapes: tuple[tuple[int, ...], ...]
    names_hash: str
    storage: str
    noise: str
    eps: float
    num_directions: int
    estimator: str
    rule: str
    momentum: float
    rms_decay: float
    window: int
    anchor_steps: int
    rank: int
    basis_steps: int
    sizes: tuple[float, ...]
    """Of each parameter's noise; empty: 1."""
    seed: int
    groups: tuple[Group, ...]
    stored: dict[str, list[str]] = field(default_factory=dict)
    """Names in the checkpoint's files of those parameters that have others there: tied ones, adapters."""
    parent: Parent | None = None
    clip: float = 0.0
    """Not in the file where it is 0, as in the files of before."""

    @property
    def rates(self) -> int:
        """Distinct learning rates in a record."""
        return 1 + max(group.rate for group in self.groups)

    @cached_property
    def losses(self) -> int:
        """Losses in a record."""
        return Course(self).num_losses

    @property
    def record_bytes(self) -> int:
        """Size of a record."""
        return STEP_BYTES + (self.losses + self.rates) * NUMBER_BYTES + CHECKSUM_BYTES

    def to_bytes(self) -> bytes:
        """The file's contents."""
        values = {"format": FORMAT, "version": VERSION, "record_bytes": self.record_bytes, **asdict(self)}
        if not self.clip:
            del values["clip"]
        return (json.dumps(values, indent=1, allow_nan=False) + "\n").encode()


SETTINGS = tuple(one.name for one in fields(Header) if one.name in MeZOConfig.__dataclass_fields__)
"""The fields of a header that are settings of the engine, by the same names."""


def parse_header(data: bytes) -> Header:
    """The header from its file's contents.

    Raises:
        JournalError: not a journal, an unknown version, or a field that is missing, unknown or out of range.
    """
    try:
        values = json.loads(data.decode("utf-8"), object_pairs_hook=_without_repeats)
    except (UnicodeDecodeError, ValueError, RecursionError) as error:
        raise JournalError(f"the header is not JSON ({type(error).__name__})") from error
    if not isinstance(values, dict) or values.pop("format", None) != FORMAT:
        raise JournalError(f"the header is not that of a journal (format {FORMAT!r} expected)")
    version = values.pop("version", None)
    if version == 1:
        raise JournalError(
            "the journal has version 1, whose noise this program does not compute: replay it with llava 0.1.0 and "
            "start from those weights"
        )
    if version != VERSION or not _integer(version, 0, LARGEST_SEED):
        raise JournalError(f"the journal has version {version!r}; this program reads version {VERSION}")
    size = values.pop("record_bytes", None)
    values.setdefault("clip", 0.0)
    expected, found = {one.name for one in fields(Header)}, set(values)
    if found != expected:
        raise JournalError(f"the header lacks {sorted(expected - found)} or has unknown {sorted(found - expected)}")
    header = _header(values)
    if size != header.record_bytes or not _integer(size, 0, LARGEST_SEED):
        raise JournalError(f"the header has record_bytes {size!r}, but its fields make {header.record_bytes}")
    return header


def _header(values: dict[str, Any]) -> Header:
    try:
        groups = tuple(map(_group, _list(values["groups"])))
        parent = None if values["parent"] is None else Parent(**values["parent"])
        lists = {"names": _strings(values["names"]), "dtypes": _strings(values["dtypes"])}
        shapes = tuple(_integers(shape) for shape in _list(values["shapes"]))
        stored = {name: list(_strings(names)) for name, names in values["stored"].items()}
        numbers = {name: _number(values[name]) for name in ("eps", "momentum", "rms_decay", "clip")}
        sizes = tuple(map(_number, _list(values["sizes"])))
        more = {"sizes": sizes, "shapes": shapes, "groups": groups, "parent": parent, "stored": stored, **numbers}
        header = Header(**{**values, **lists, **more})
        _check_header(header)
    except JournalError:
        raise
    except (TypeError, ValueError, KeyError, AttributeError, OverflowError) as error:
        raise JournalError(f"the header has a field of another form than expected ({error!r})") from error
    return header


def _without_repeats(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        raise ValueError("a key is there twice")
    return found


def _group(values: Any) -> Group:
    if set(values) != {"parameters", "weight_decay", "rate"}:
        raise TypeError(f"a group has {sorted(values)}")
    return Group(_integers(values["parameters"]), _number(values["weight_decay"]), values["rate"])


def _check_header(header: Header) -> None:
    numbers = [number for group in header.groups for number in group.parameters]
    rates = {group.rate for group in header.groups}
    wants = {
        "model": isinstance(header.model, str) and header.model.isprintable(),
        "fingerprint": _is_hash(header.fingerprint),
        "names": len(header.names) == len(set(header.names)) > 0,
        "names_hash": header.names_hash == names_hash(header.names),
        "dtypes": len(header.dtypes) == len(header.names) and set(header.dtypes) <= {"float32", "bfloat16", "float16"},
        "shapes": len(header.shapes) == len(header.names),
        "storage": header.storage in STORAGES,
        "noise": header.noise in NOISES,
        "eps": header.eps > 0 and math.isfinite(2 * header.eps),
        "num_directions": _integer(header.num_directions, 1, MOST_DIRECTIONS),
        "estimator": header.estimator in ESTIMATORS,
        "rule": header.rule in RULES,
        "momentum": 0 <= header.momentum < 1,
        "rms_decay": 0 <= header.rms_decay < 1,
        "clip": header.clip >= 0,
        "window": _integer(header.window, 1, LARGEST_WINDOW),
        "anchor_steps": _integer(header.anchor_steps, 1, LARGEST_WINDOW),
        "rank": _integer(header.rank, 1, LARGEST_RANK),
        "basis_steps": _integer(header.basis_steps, 1, LARGEST_SEED),
        "sizes": not header.sizes or (len(header.sizes) == len(header.names) and min(header.sizes) > 0),
        "seed": _integer(header.seed, 0, LARGEST_SEED),
        "groups": sorted(numbers) == list(range(len(header.names)))
        and all(_integer(rate, 0, len(header.groups) - 1) for rate in rates)
        and rates == set(range(len(rates)))
        and all(group.weight_decay >= 0 for group in header.groups),
        "stored": set(header.stored) <= set(header.names) and all(header.stored.values()),
        "parent": header.parent is None
        or (_integer(header.parent.steps, 0, 2**32 - 1) and _integer(header.parent.checksum, 0, 2**32 - 1)),
    }
    wrong = [name for name, right in wants.items() if not right]
    if wrong:
        raise JournalError(f"the header's {', '.join(wrong)} cannot be right: {_short(header, wrong[0])}")
    Course(header)  # a ValueError for what does not go together


def _short(header: Header, name: str) -> str:
    text = repr(getattr(header, name))
    return text if len(text) <= 100 else text[:100] + " ..."


def _integer(value: object, low: int, high: int) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and low <= value <= high


def _list(values: Any) -> list[Any]:
    if not isinstance(values, list):
        raise TypeError(f"{values!r} is not a list")
    return values


def _strings(values: Any) -> tuple[str, ...]:
    found = tuple(_list(values))
    if not all(isinstance(value, str) for value in found):
        raise TypeError("a list of strings has something else in it")
    "".join(found).encode()  # UnicodeEncodeError, a ValueError, for half a surrogate pair
    return found


def _integers(values: Any) -> tuple[int, ...]:
    found = tuple(_list(values))
    if not all(_integer(value, 0, 2**63) for value in found):
        raise TypeError("a list of integers has something else in it")
    return found


def _number(value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
        raise TypeError(f"{value!r} is not a finite number")
    return float(value)


def _is_hash(value: object) -> bool:
    return isinstance(value, str) and len(value) == 64 and set(value) <= set("0123456789abcdef")
