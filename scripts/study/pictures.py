"""Pictures of single experiments: a grid of accuracies, memory by method, signal and noise over a run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from llava.runs.plots import COLOURS, empty_figure


def plot_grid(
    cells: Mapping[tuple[str, str], float | None],
    columns: Sequence[str],
    rows: Sequence[str],
    path: str | Path,
    title: str,
) -> None:
    """Draw a heat map of learning rate and eps: accuracies in %, a cross for None (diverged), nothing where none is."""
    figure, axes = empty_figure(height=1.4 + 0.7 * len(rows))
    values = [[cells.get((column, row)) for column in columns] for row in rows]
    shown = [[float("nan") if value is None else value for value in line] for line in values]
    picture = axes.imshow(shown, cmap="viridis", aspect="auto")
    middle = (picture.norm.vmin + picture.norm.vmax) / 2
    for y, row in enumerate(rows):
        for x, column in enumerate(columns):
            value = cells.get((column, row))
            text = "" if (column, row) not in cells else "×" if value is None else f"{value:.1f}"
            colour = "black" if value is None or value > middle else "white"
            axes.text(x, y, text, ha="center", va="center", color=colour)
    axes.set_xticks(range(len(columns)), columns)
    axes.set_yticks(range(len(rows)), rows)
    axes.set(xlabel="learning rate", ylabel="eps", title=title)
    figure.colorbar(picture, ax=axes, label="accuracy, %")
    figure.savefig(path)


def plot_memory(methods: Mapping[str, Mapping[str, float]], path: str | Path, title: str) -> None:
    """Draw one stacked bar a method: gigabytes by what they are for."""
    figure, axes = empty_figure(height=1.4 + 0.5 * len(methods))
    ends = [0.0] * len(methods)
    names = dict.fromkeys(part for parts in methods.values() for part in parts)
    for part, colour in zip(names, COLOURS, strict=False):
        sizes = [parts.get(part, 0.0) for parts in methods.values()]
        axes.barh(range(len(methods)), sizes, left=ends, color=colour, label=part.replace("_", " "))
        ends = [end + size for end, size in zip(ends, sizes, strict=True)]
    for place, end in enumerate(ends):
        axes.annotate(f"{end:.1f}", (end, place), (4, 0), textcoords="offset points", va="center")
    axes.set_yticks(range(len(methods)), list(methods))
    axes.invert_yaxis()
    axes.set(xlabel="GB", title=title, xlim=(0, 1.12 * max(ends)))
    axes.grid(axis="x", alpha=0.3)
    axes.legend(frameon=False)
    figure.savefig(path)


def plot_progress(
    curves: Mapping[str, Sequence[tuple[float, float]]], path: str | Path, title: str, best: float | None = None
) -> None:
    """Draw accuracy in % against thousands of sample-forwards, a line a label; `best` is that of backpropagation."""
    figure, axes = empty_figure()
    for number, (label, points) in enumerate(curves.items()):
        forwards, accuracies = zip(*points, strict=True)
        style = ("-", "--", ":")[number // 10 % 3]  # as many colours are there
        axes.plot([n / 1000 for n in forwards], accuracies, style, marker="o", markersize=3, label=label)
    if best is not None:
        axes.axhline(best, color="black", linewidth=1, linestyle="--", label="AdamW")
    axes.set(xlabel="sample-forwards, thousands", ylabel="accuracy, %", title=title)
    axes.grid(alpha=0.3)
    axes.legend(frameon=False, fontsize="small")
    figure.savefig(path)


def plot_windows(runs: Mapping[str, Sequence[Mapping[str, float]]], path: str | Path) -> None:
    """Draw, for each run, `loss`, `rms` of the projected gradient, and signal's `share` ± `error`, over `step`."""
    names = {"loss": "training loss", "rms": "rms of projected gradient", "share": "signal's share of its square, %"}
    figure, panels = empty_figure(columns=len(names))
    for axes, (name, label) in zip(panels, names.items(), strict=True):
        for run, rows in runs.items():
            steps, values = [row["step"] for row in rows], [row[name] for row in rows]
            if name == "share":
                errors = [100 * row["error"] for row in rows]
                axes.errorbar(steps, [100 * value for value in values], errors, marker="o", capsize=2, label=run)
            else:
                axes.plot(steps, values, marker="o", label=run)
        axes.set(xlabel="optimizer step", ylabel=label)
        axes.grid(alpha=0.3)
    figure.legend(*axes.get_legend_handles_labels(), loc="outside lower center", frameon=False, fontsize="small")
    figure.savefig(path)
