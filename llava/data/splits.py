"""Items to train, val and test: at random where the set has no splits, never with one picture in two of them.

All draws are functions of the seed and of the items in the order given; they do not depend on Python's version.
"""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Callable, Sequence
from typing import TypeVar

from llava.data.items import Item
from llava.errors import InputError

logger = logging.getLogger(__name__)

SPLITS = ("train", "val", "test")
Sizes = dict[str, int]  # records of each of SPLITS
Divided = dict[str, list[Item]]
Divide = Callable[[Sequence[Item], Sizes, int], Divided]
T = TypeVar("T")


def shuffled(values: Sequence[T], *seed: int | str) -> list[T]:
    """The values in the order that `seed` decides: that of the SHA-256 of seed and position."""

    def rank(position: int) -> bytes:
        return hashlib.sha256("\n".join(map(str, [*seed, position])).encode()).digest()

    return [values[position] for position in sorted(range(len(values)), key=rank)]


def fitting(sizes: Sizes, available: int, what: str) -> Sizes:
    """The sizes if they fit, else scaled down in their proportions and rounded down; `what` names what is counted.

    Raises:
        InputError: a split would be empty.
    """
    wanted = sum(sizes.values())
    if wanted <= available:
        return dict(sizes)
    fitted = {split: size * available // wanted for split, size in sizes.items()}
    if not all(fitted.values()):
        raise InputError(f"--source has {available} {what}: too few to divide as {_flags(sizes)}")
    logger.warning("%d %s, fewer than %s: taking %s", available, what, _flags(sizes), _flags(fitted))
    return fitted


def balanced(items: Sequence[Item], sizes: Sizes, seed: int) -> Divided:
    """At random, each kind equally often in every split. The pictures must differ.

    Raises:
        InputError: a size that the kinds do not divide, or too few items.
    """
    kinds = sorted({item.kind for item in items})
    uneven = {split: size for split, size in sizes.items() if size % len(kinds)}
    if uneven:
        raise InputError(f"{_flags(uneven)}: must be a multiple of {len(kinds)}, so that {' and '.join(kinds)} balance")
    by_kind = {kind: shuffled([item for item in items if item.kind == kind], seed, kind) for kind in kinds}
    least = min(len(group) for group in by_kind.values())
    parts = fitting(
        {split: size // len(kinds) for split, size in sizes.items()}, least, f"of each of {len(kinds)} kinds"
    )
    divided, start = {}, 0
    for split, part in parts.items():
        chosen = [item for group in by_kind.values() for item in group[start : start + part]]
        divided[split] = shuffled(chosen, seed, split)
        start += part
    return divided


def grouped(items: Sequence[Item], sizes: Sizes, seed: int) -> Divided:
    """At random, questions on equal pictures in the same split.

    A group goes to the first split that has room for all of it; one that fits nowhere is not used.
    """
    groups: dict[str, list[Item]] = {}
    for item in items:
        groups.setdefault(item.fingerprint(), []).append(item)
    room = fitting(sizes, len(items), "records")
    divided: Divided = {split: [] for split in room}
    for group in shuffled(list(groups.values()), seed):
        split = next((name for name, size in room.items() if len(divided[name]) + len(group) <= size), None)
        if split is not None:
            divided[split] += group
    for split, size in room.items():
        if not divided[split]:
            raise InputError(f"--source: no group of questions on one picture is as small as --{split} {size}")
        if len(divided[split]) < size:
            logger.warning(
                "%s: %d of %d, since questions on one picture stay together", split, len(divided[split]), size
            )
    return divided


def published(items: Sequence[Item], sizes: Sizes, seed: int) -> Divided:
    """A random sample of each split that the set has itself; all of it where that is no more than asked for.

    Raises:
        InputError: a split without items.
    """
    divided = {}
    for split, size in sizes.items():
        own = [item for item in items if item.split == split]
        if not own:
            raise InputError(f"--source: its split {split} is empty")
        if len(own) < size:
            logger.warning("%s: all %d records, fewer than --%s %d", split, len(own), split, size)
        divided[split] = shuffled(own, seed, split)[:size]
    return divided


def _flags(sizes: Sizes) -> str:
    return " ".join(f"--{split} {size}" for split, size in sizes.items())
