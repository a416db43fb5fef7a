"""Pictures of single experiments: grids and rows of accuracies, memory by method, curves against one, signal."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from llava.runs.style import COLOURS, HATCHES, cut_off, empty_figure, label_ends, line_style, upper_limit, whole_ticks

Points = Sequence[tuple[float, float]]
OUTLIER = 4.0  # a value further below the median than this many spreads of the middle half is left of the picture


def plot_grid(
    cells: Mapping[tuple[str, str], float | None],
    columns: Sequence[str],
    rows: Sequence[str],
    path: str | Path,
    title: str,
    before: float,
    records: int,
) -> None:
    """Draw accuracies in % by learning rate and eps, on the colours from `before` training to the best.

    None is a run that diverged; a cell that is missing has not been run, and says so.

    Args:
        records: that an accuracy is of; one standard error at the best cell is said.
    """
    figure, axes = empty_figure(height=1.7 + 0.6 * len(rows))
    values = [[cells.get((column, row)) for column in columns] for row in rows]
    shown = [[float("nan") if value is None else value for value in line] for line in values]
    best = max((value for line in values for value in line if value is not None), default=100.0)
    picture = axes.imshow(shown, cmap="cividis", aspect="auto", vmin=before, vmax=max(best, before + 1))
    for y, row in enumerate(rows):
        for x, column in enumerate(columns):
            value = cells.get((column, row))
            text = "not run" if (column, row) not in cells else "diverged" if value is None else f"{value:.1f}"
            dark = value is not None and value < (before + best) / 2
            axes.text(x, y, text, ha="center", va="center", color="white" if dark else "black")
    error = 100 * (best / 100 * (1 - best / 100) / records) ** 0.5
    axes.set_xticks(range(len(columns)), columns)
    axes.set_yticks(range(len(rows)), rows)
    axes.set(xlabel="learning rate", ylabel="eps", title=title)
    figure.colorbar(picture, ax=axes, label=f"accuracy, %\n(from {before:.1f} before)")
    note = f"{records} records: one is {100 / records:.1f} points, the standard error of the best {error:.1f}"
    figure.supxlabel(note, fontsize="small")
    figure.savefig(path)


def left_limit(values: Sequence[float]) -> float | None:
    """Where an axis of accuracies may begin, if some values are far below the others; None if all are near."""
    ordered = sorted(values)
    middle, quarter, upper = (ordered[len(ordered) * part // 4] for part in (2, 1, 3))
    kept = [value for value in ordered if value >= middle - OUTLIER * max(upper - quarter, 1.0)]
    return None if len(kept) == len(ordered) else kept[0]


def plot_rows(rows: Sequence[Mapping[str, Any]], path: str | Path, title: str, records: int) -> None:
    """Draw accuracies as points with their standard errors, a line each: `label`, `value` in %, `series`.

    A value far below the others is an arrow at the edge, with its number and what `note` says of it.
    """
    figure, axes = empty_figure(height=1.7 + 0.3 * len(rows))
    limit = left_limit([row["value"] for row in rows])
    series = list(dict.fromkeys(row["series"] for row in rows))
    for place, row in enumerate(rows):
        style = line_style(series.index(row["series"])) | {"linestyle": "none"}
        value = row["value"]
        if limit is not None and value < limit:
            start = (limit - 1.4, place)
            text = f"{value:.1f} {row.get('note', '')}".strip()
            axes.annotate("", start, (limit - 0.4, place), arrowprops={"arrowstyle": "->", "color": style["color"]})
            axes.annotate(text, (limit - 0.3, place), va="center", color=style["color"])
            continue
        error = 100 * (value / 100 * (1 - value / 100) / records) ** 0.5
        axes.errorbar(value, place, xerr=error, capsize=3, **style)
        axes.annotate(f"{value:.1f}", (value, place), (0, 5), textcoords="offset points", ha="center", fontsize="small")
    for number, name in enumerate(series):
        axes.errorbar([], [], xerr=[], capsize=3, label=name, **(line_style(number) | {"linestyle": "none"}))
    axes.set_yticks(range(len(rows)), [row["label"] for row in rows], fontsize="small")
    axes.set_ylim(len(rows) - 0.4, -0.8)
    if limit is not None:
        axes.set_xlim(left=limit - 1.6)
    axes.set(xlabel=f"accuracy, % of {records} records, ± standard error", title=title)
    axes.grid(axis="x", alpha=0.3)
    figure.legend(loc="outside lower center", ncols=len(series), frameon=False, fontsize="small")
    figure.savefig(path)


def plot_memory(blocks: Mapping[str, Mapping[str, Mapping[str, float]]], path: str | Path, title: str) -> None:
    """Draw one stacked bar a method, in blocks by how it was measured: gigabytes by what they are for."""
    bars = [(block, name, parts) for block, methods in blocks.items() for name, parts in methods.items()]
    places = [place + 0.8 * list(blocks).index(block) for place, (block, _, _) in enumerate(bars)]
    figure, axes = empty_figure(height=1.6 + 0.36 * len(bars) + 0.3 * len(blocks))
    ends = [0.0] * len(bars)
    names = dict.fromkeys(part for _, _, parts in bars for part in parts)
    for number, part in enumerate(names):
        sizes = [parts.get(part, 0.0) for _, _, parts in bars]
        look = {"color": COLOURS[number], "hatch": HATCHES[number], "edgecolor": "white"}
        axes.barh(places, sizes, left=ends, height=0.75, label=part.replace("_", " "), **look)
        ends = [end + size for end, size in zip(ends, sizes, strict=True)]
    for place, end in zip(places, ends, strict=True):
        axes.annotate(f"{end:.1f}", (end, place), (4, 0), textcoords="offset points", va="center")
    for block in blocks:
        first = min(place for place, bar in zip(places, bars, strict=True) if bar[0] == block)
        axes.annotate(block, (0, first - 0.45), (3, 0), textcoords="offset points", va="bottom", weight="bold")
    axes.set_yticks(places, [name for _, name, _ in bars])
    axes.set_ylim(places[-1] + 0.6, -1.2)
    axes.set(xlabel="peak memory, GB (1e9 bytes)", title=title, xlim=(0, 1.12 * max(ends)))
    axes.grid(axis="x", alpha=0.3)
    axes.set_axisbelow(True)
    figure.legend(loc="outside lower center", ncols=len(names), frameon=False, fontsize="small")
    figure.savefig(path)


def plot_progress(curves: Mapping[str, Points], path: str | Path, title: str, best: float | None = None) -> None:
    """Draw accuracy in % against thousands of sample-forwards, a line a label; `best` is that of backpropagation."""
    figure, axes = empty_figure(height=4.2 + 0.1 * len(curves))
    for number, (label, points) in enumerate(curves.items()):
        forwards, accuracies = zip(*points, strict=True)
        axes.plot([n / 1000 for n in forwards], accuracies, markersize=4, label=label, **line_style(number))
    if best is not None:
        axes.axhline(best, color="black", linewidth=2, alpha=0.5, label="AdamW, at its end")
    axes.set(xlabel="forwards of a sample, thousands", ylabel="accuracy, %", title=title)
    axes.grid(alpha=0.3)
    figure.legend(loc="outside lower center", ncols=3, frameon=False, fontsize="small")
    figure.savefig(path)


def plot_against(curves: Mapping[str, Points], reference: str, path: str | Path, title: str, loss: str) -> None:
    """Draw losses over steps and, beside them, each as a multiple of the curve `reference` where both have a point.

    The first point, where all start from one model, is not in the multiples. A curve that diverged is cut off.
    """
    figure, (left, right) = empty_figure(height=4.2, columns=2, sharex=True)
    limit = upper_limit([[value for _, value in points] for points in curves.values()])
    base = dict(curves[reference])
    for number, (label, points) in enumerate(curves.items()):
        style = line_style(number) | {"markersize": 4, "linewidth": 1.6, "markevery": max(1, len(points) // 8)}
        left.plot(*zip(*points, strict=True), label=cut_off(label, [value for _, value in points], limit), **style)
        shared = [(step, value / base[step]) for step, value in points[1:] if base.get(step)]
        right.plot(*zip(*shared, strict=True), label=label, **style)
    for axes in (left, right):
        axes.set_yscale("log")
        _plain_log_ticks(axes.yaxis)
        whole_ticks(axes.xaxis)
        axes.set_xlabel("optimizer step")
        axes.grid(alpha=0.3, which="both")
    if limit is not None:
        left.set_ylim(top=limit)
    left.set_ylabel(loss)
    right.set_ylabel(f"the same, as a multiple of that of {reference}")
    label_ends(right)
    figure.suptitle(title)
    figure.legend(*left.get_legend_handles_labels(), loc="outside lower left", ncols=2, frameon=False, fontsize="small")
    figure.savefig(path)


def _plain_log_ticks(axis: Any) -> None:
    """Numbers as people write them on an axis of powers, also where it spans less than one of ten."""
    from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullFormatter

    low, high = sorted(axis.get_view_interval())
    if high < 3 * low:
        axis.set_major_locator(MaxNLocator(nbins=6, steps=[1, 2, 5, 10]))
    else:
        axis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:.3g}"))
    axis.set_minor_formatter(NullFormatter())


WINDOW_NAMES = {
    "loss": "training loss",
    "rms": "projected gradient,\nroot mean square",
    "share": "signal's share of the\nsquared gradient, %",
}


def plot_shares(curves: Mapping[str, Points], path: str | Path, title: str) -> None:
    """Draw shares (0..1) of rounding and curvature in squared slopes over eps, a line a label."""
    figure, axes = empty_figure()
    for number, (label, points) in enumerate(curves.items()):
        sizes, shares = zip(*points, strict=True)
        axes.plot(sizes, [100 * share for share in shares], label=label, **line_style(number))
    axes.set(xscale="log", xlabel="eps", ylabel="of the squared slopes, %", ylim=(-2, 102), title=title)
    axes.grid(alpha=0.3)
    figure.legend(loc="outside lower center", ncols=2, frameon=False, fontsize="small")
    figure.savefig(path)


def plot_parts(
    columns: Mapping[str, Mapping[str, Mapping[str, tuple[float, float]]]],
    path: str | Path,
    title: str,
    origins: Mapping[str, float] | None = None,
) -> None:
    """Draw points with their errors, a line a part and a column a quantity.

    Args:
        columns: by the text below a column and by series, the value and the error of each part.
        origins: where a column has its vertical line, by its text; by default at 0.
    """
    parts = list(dict.fromkeys(part for series in columns.values() for found in series.values() for part in found))
    names = list(dict.fromkeys(name for series in columns.values() for name in series))
    figure, panels = empty_figure(1.4 + 0.35 * len(parts), len(columns), sharey=True, squeeze=False)
    for axes, (label, series) in zip(panels[0], columns.items(), strict=True):
        axes.axvline((origins or {}).get(label, 0), color="black", linewidth=0.8)
        for name, found in series.items():
            values, errors = zip(*found.values(), strict=True)
            look = line_style(names.index(name)) | {"linestyle": "none"}
            axes.errorbar(values, list(map(parts.index, found)), xerr=errors, capsize=3, label=name, **look)
        axes.set(xlabel=label)
        axes.grid(alpha=0.3)
    panels[0, 0].set_yticks(range(len(parts)), parts)
    panels[0, 0].invert_yaxis()
    if len(names) > 1:
        figure.legend(*panels[0, 0].get_legend_handles_labels(), loc="outside lower center", ncols=3, frameon=False)
    figure.suptitle(title)
    figure.savefig(path)


def plot_windows(runs: Mapping[str, Sequence[Mapping[str, float]]], path: str | Path) -> None:
    """Draw a column a run, and in it a row for each of `loss`, `rms` and `share` ± `error` that it has, over `step`."""
    given = next(iter(runs.values()))[0]
    names = {name: label for name, label in WINDOW_NAMES.items() if name in given}
    figure, panels = empty_figure(0.9 + 2.2 * len(names), len(runs), len(names), squeeze=False, sharey="row")
    for column, (run, rows) in enumerate(runs.items()):
        for axes, name in zip(panels[:, column], names, strict=True):
            steps, values = [row["step"] for row in rows], [row[name] for row in rows]
            if name == "share":
                errors = [100 * row["error"] for row in rows]
                axes.axhline(0, color="black", linewidth=0.8)
                axes.errorbar(steps, [100 * value for value in values], errors, capsize=3, **line_style(0))
            else:
                axes.plot(steps, values, **line_style(0))
            axes.grid(alpha=0.3)
            axes.set_xlim(left=0)
            whole_ticks(axes.xaxis, nbins=3)
        panels[0, column].set_title(run.replace(", ", "\n"), fontsize="medium")
    for axes, label in zip(panels[:, 0], names.values(), strict=True):
        axes.set_ylabel(label)
        axes.set_ylim(bottom=min(0, axes.get_ylim()[0]))  # of the whole row, once all of it is drawn
    figure.supxlabel("optimizer step (the end of each fifth of the run)", fontsize="medium")
    figure.savefig(path)
