"""Below a zeroth-order run's loss, over the same steps: its projected gradients, and what its probes say."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

from llava.runs.style import COLOURS

Rows = Sequence[Mapping[str, Any]]
Panel = Callable[[Any], None]
"""Draws on axes."""
HEIGHT = 1.9
"""Inches of a panel."""
ALIKE = 10.0
"""Projected gradients are so, if the largest is at most so many times the smallest."""
LARGEST_GROWTH = 20.0
"""Of values over the first one and its bar: an axis ends there where they grow by more, as where a run diverges."""


def progress_panels(gradients: Rows, probes: Rows) -> list[Panel]:
    """One each where there is something to see.

    Args:
        gradients: `llava.mezo.progress.rms_report` of a run.
        probes: `Probes.report` of the same module.
    """
    panels: list[Panel] = []
    if len(gradients) > 1:
        panels.append(partial(_draw_gradients, gradients))
    if len(probes) > 1:
        panels.append(partial(_draw_probes, probes))
    return panels


def _draw_gradients(rows: Rows, axes: Any) -> None:
    """From 0 where they are alike, as those of `fzoo`, which are over their own deviation."""
    values = [row["rms"] for row in rows]
    axes.plot([row["step"] for row in rows], values, color=COLOURS[0], linewidth=1.8)
    axes.set_ylabel("rms of projected\ngradients")
    if max(values) > ALIKE * min(values) > 0:
        axes.set_yscale("log")
    else:
        axes.set_ylim(bottom=0)
    axes.grid(alpha=0.3)


def _draw_probes(rows: Rows, axes: Any) -> None:
    """Signal by the left axis and curvature by the right one, with bars of two standard errors to each side."""
    steps = [sum(row["steps"]) / 2 for row in rows]
    right = axes.twinx()
    for side, name, label, colour, marker in (
        (axes, "signal", "signal, |g|²", COLOURS[0], "o"),
        (right, "trace", "curvature,\ntrace of the Hessian", COLOURS[1], "s"),
    ):
        values, errors = ([row[name][key] for row in rows] for key in ("value", "error"))
        bars = [2 * error for error in errors]
        side.errorbar(steps, values, bars, color=colour, fmt=marker, markersize=4, capsize=3)
        limit = LARGEST_GROWTH * (abs(values[0]) + bars[0])
        if max(map(abs, values)) > limit:
            side.set_ylim(-limit, limit)
            label += "\n(cut off)"
        side.axhline(0, color=colour, linewidth=0.8, linestyle=":")
        side.set_ylabel(label, color=colour)
        side.tick_params(axis="y", colors=colour)
    axes.grid(alpha=0.3)
