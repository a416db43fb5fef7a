"""What a run keeps that has gone back: in its journal's folder a folder for each time, `diverged-1-at-75-back-to-12`.

It holds the journal as it was then, of 75 records, and its name says how many of them still count. It is there at once
and as a whole (`going_back.py`), and from then on the run has gone back: where records.bin has all of those records
still, since a kill came before it was cut, they do not count (`files.py`).
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

_KEPT = re.compile(r"diverged-(\d+)-at-(\d+)-back-to-(\d+)")


class Kept(NamedTuple):
    """A journal that a run has gone back in."""

    number: int
    """1 for the first time."""
    steps: int
    """Its records."""
    back_to: int
    """How many of them the run went on from."""

    def inside(self, journal: Path) -> Path:
        """Its folder in that of the run's journal."""
        return journal / f"diverged-{self.number}-at-{self.steps}-back-to-{self.back_to}"


def kept_journals(journal: Path) -> list[Kept]:
    """What lies in a journal's folder, the first time first."""
    matches = map(_KEPT.fullmatch, (path.name for path in journal.glob("diverged-*")))
    return sorted(Kept(*map(int, match.groups())) for match in matches if match)


def halvings(step: int, times: Sequence[Kept]) -> int:
    """How often the rate of a step (0 is the first) is halved: for each time that the run went back to it or before."""
    return max((kept.number for kept in times if kept.back_to <= step), default=0)
