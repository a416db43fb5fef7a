"""The look that all pictures have in common: colours, lines, ticks, averages, limits, labels at the ends of lines."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#56b4e9", "#e69f00", "#000000")
"""Of Okabe and Ito (2008), told apart without red or without green; the first two also in grey."""
LINES = ("-", "--", "-.", ":")
MARKERS = ("o", "s", "^", "D", "v", "P", "X")
HATCHES = ("", "///", "...", "xx")
PALE = "#a9c5da"
"""Of what stands behind a line of the first colour."""
WIDTH, DPI = 8.0, 120
"""Inches, and dots an inch: 960 pixels, whose text is still read at 800."""

SMOOTHING_SHARE = 0.05  # the moving average looks at this share of the points, and at three of them or more
DIVERGED = 3.0  # a curve that rises above this multiple of where curves begin, and of the others' tops, is cut off
LARGEST_LINEAR = 50.0  # a loss above this has an axis with powers of ten
LABEL_GAP = 0.055  # of the height of the axes: labels closer than this would touch


def empty_figure(height: float = 4.5, columns: int = 1, rows: int = 1, **options: Any) -> tuple[Any, Any]:
    """Figure and axes by the object interface, which needs no display and leaves a notebook's backend alone.

    `height` is in inches; the width is that of a page. Several `columns` or `rows` give an array of axes; `options` are
    those of `Figure.subplots`.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(WIDTH, height), dpi=DPI, layout="constrained")
    FigureCanvasAgg(figure)
    return figure, figure.subplots(rows, columns, **options)


def line_style(number: int) -> dict[str, Any]:
    """Colour, dashes and marker of the line with this number: neighbours differ in all three."""
    return {
        "color": COLOURS[number % len(COLOURS)],
        "linestyle": LINES[number % len(LINES)],
        "marker": MARKERS[number % len(MARKERS)],
    }


def whole_ticks(axis: Any, nbins: int = 6) -> None:
    """At most `nbins` + 1 ticks of an axis that counts: at whole numbers alone, with commas between thousands."""
    from matplotlib.ticker import FuncFormatter, MaxNLocator

    axis.set_major_locator(MaxNLocator(nbins=nbins, steps=[1, 2, 5, 10], integer=True))
    # where the axis is shorter than two, there are ticks between whole numbers all the same
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.0f}" if float(value).is_integer() else ""))


def moving_average(places: Sequence[float], values: Sequence[float]) -> tuple[list[float], list[float]]:
    """Centred moving average, where its whole window is there: none for the first and last few places.

    With fewer than three values nothing is averaged.
    """
    reach = max(1, round(SMOOTHING_SHARE * len(values) / 2))
    if len(values) < 2 * reach + 1:
        return list(places), list(values)
    inner = range(reach, len(values) - reach)
    averages = [sum(values[k - reach : k + reach + 1]) / (2 * reach + 1) for k in inner]
    return [places[k] for k in inner], averages


def upper_limit(curves: Sequence[Sequence[float]]) -> float | None:
    """Where an axis has to end for the curves to be told apart, if some diverged; None if all fit.

    A curve may rise to three times the highest start, and to three times the top that half of the curves stay below.
    """
    finite = [[value for value in curve if math.isfinite(value)] for curve in curves]
    finite = [curve for curve in finite if curve]
    if not finite:
        return None
    tops = sorted(max(curve) for curve in finite)
    limit = DIVERGED * max(max(curve[0] for curve in finite), tops[(len(tops) - 1) // 2])
    if tops[-1] <= limit:
        return None
    return 1.05 * max(top for top in tops if top <= limit)


def cut_off(label: str, values: Sequence[float], limit: float | None) -> str:
    """A curve's name for the legend, which says so if the curve leaves the picture."""
    top = max((value for value in values if math.isfinite(value)), default=-math.inf)
    return label if limit is None or top <= limit else f"{label}; diverged, up to {top:,.4g} above the picture"


def spread(heights: Sequence[float], gap: float = LABEL_GAP) -> list[float]:
    """Heights at least `gap` apart, in the same order and as near to those given as can be (in squares)."""
    order = sorted(range(len(heights)), key=heights.__getitem__)
    blocks: list[list[float]] = []  # neighbours that push each other, less the gaps between them
    for rank, place in enumerate(order):
        blocks.append([heights[place] - rank * gap])
        while len(blocks) > 1 and _mean(blocks[-2]) > _mean(blocks[-1]):
            blocks[-2:] = [blocks[-2] + blocks[-1]]
    means = [_mean(block) for block in blocks for _ in block]
    found = dict(zip(order, means, strict=True))
    return [found[place] + order.index(place) * gap for place in range(len(heights))]


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)


def label_ends(axes: Any) -> None:
    """Write the name of each line beside its end, in its colour, so that none hides another.

    For axes whose lines, limits and scales are final; a line's name is its label in matplotlib.
    """
    lines = [line for line in axes.get_lines() if not line.get_label().startswith("_")]
    right = axes.get_xlim()[1]
    from_data = axes.transData + axes.transAxes.inverted()
    heights = [float(from_data.transform((right, line.get_ydata()[-1]))[1]) for line in lines]
    for line, end, height in zip(lines, heights, spread(heights), strict=True):
        colour, along = line.get_color(), axes.transAxes
        axes.plot([1, 1.04], [end, height], color=colour, linewidth=0.8, transform=along, clip_on=False, label="_")
        axes.text(1.05, height, line.get_label(), color=colour, va="center", fontsize="small", transform=along)
