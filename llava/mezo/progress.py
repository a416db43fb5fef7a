"""What a zeroth-order run shows of its progress, over windows of its steps: projected gradients, and probes.

A probe is what two or more batches say of the loss around the weights before a step (`curvature.py`), along a direction
of its own, so that nothing of a step depends on it. The batches are drawn for it: those of neighbouring steps are not
independent where an order groups or spreads records, and the product of their slopes is not |g|^2 then.
OUTPUT_DIR/probes.json, written anew with each probe and before its step, has them all:

    {"probes": [{"step": 0, "batches": [[loss, slope, curvature], [loss, slope, curvature]]}, ...]}
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Sequence
from dataclasses import astuple
from pathlib import Path
from typing import Any, TypeVar

from llava.mezo.algorithms.interface import Term
from llava.mezo.curvature import Along, Landscape, Probe
from llava.mezo.durable import write_durably
from llava.mezo.errors import InputError

PROBES_FILE = "probes.json"
GRADIENTS, PROBES = (25, 60), (10, 10)
"""Values of a window at least, if there are so many, and windows at most."""
SHOWN = ("signal", "square", "share", "trace")
"""Of a `Landscape`."""

Value = TypeVar("Value")


class Probes:
    """The probes of a run, by the steps before which they were taken.

    Args:
        file: where they are kept.
    """

    def __init__(self, file: Path) -> None:
        self.file = file
        self.found: dict[int, Along] = {}

    def take_up(self, until: int) -> None:
        """Those before step `until` of a run that goes on; later ones are taken again. InputError: a damaged file."""
        if not self.file.exists():
            return
        try:
            listed = json.loads(self.file.read_text(encoding="utf-8"))["probes"]
            every = {int(one["step"]): [Probe(*batch) for batch in one["batches"]] for one in listed}
        except (KeyError, TypeError, ValueError) as error:
            raise InputError(f"{self.file} is damaged ({error}): remove it, and the run goes on without") from error
        self.found = {step: along for step, along in every.items() if step < until}

    def save(self) -> None:
        """Whole, or not at all."""
        listed = [{"step": step, "batches": [astuple(one) for one in along]} for step, along in self.found.items()]
        write_durably(self.file, json.dumps({"probes": listed}) + "\n")

    def report(self, eps: float) -> list[dict[str, Any]]:
        """A row for each window: its steps, its mean loss, each of `SHOWN` with its error, and the most of rounding.

        Args:
            eps: of the probes.
        """
        rows = []
        for window in windows(self.found.items(), *PROBES):
            if len(window) > 1:
                landscape = Landscape([along for _, along in window])
                row = {"steps": [window[0][0], window[-1][0]], "probes": len(window), "loss": landscape.loss}
                row["rounding_at_most"] = landscape.rounding(eps)
                rows.append(row | {name: vars(getattr(landscape, name)) for name in SHOWN})
        return rows


def size_of(terms: Sequence[Term]) -> float:
    """Root mean square of the projected gradients of a step."""
    return math.sqrt(sum(term.projected_grad**2 for term in terms) / len(terms))


def rms_report(sizes: Iterable[tuple[int, float]]) -> list[dict[str, float]]:
    """A row for each window: the step at its middle, and the root mean square. `sizes` come with their steps."""
    return [
        {"step": window[len(window) // 2][0], "rms": math.sqrt(sum(size**2 for _, size in window) / len(window))}
        for window in windows(sizes, *GRADIENTS)
        if window
    ]


def windows(values: Iterable[Value], least: int, most: int) -> list[Sequence[Value]]:
    """The values in parts that follow each other: at most so many, of at least so many values if there are as many."""
    every = list(values)
    count = max(1, min(most, len(every) // least))
    return [every[len(every) * k // count : len(every) * (k + 1) // count] for k in range(count)]
