"""Pictures of runs as PNG files: losses, accuracy against steps, accuracies side by side."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from llava.errors import InputError
from llava.runs.validation import LOSS

COLOURS = ("#1f4e8c", "#c8872c", "#4f8a4f", "#8a4f7d")
SMOOTHING_SHARE = 0.05  # the moving average looks at this share of the logged points, and at least three
LARGEST_LINEAR = 50.0  # a loss above this has an axis with powers of ten: beside it all others would be flat


def loss_points(log_history: Iterable[Mapping[str, Any]]) -> tuple[list[int], list[float]]:
    """Steps and losses of the entries of `trainer_state.json`'s `log_history` that have both."""
    entries = [entry for entry in log_history if "loss" in entry and "step" in entry]
    return [int(entry["step"]) for entry in entries], [float(entry["loss"]) for entry in entries]


def smoothed(values: list[float]) -> list[float]:
    """Centred moving average of the same length; near the ends the window shrinks, staying centred."""
    reach = max(1, round(SMOOTHING_SHARE * len(values) / 2))
    averages = []
    for k in range(len(values)):
        near = min(reach, k, len(values) - 1 - k)
        window = values[k - near : k + near + 1]
        averages.append(sum(window) / len(window))
    return averages


def plot_loss(
    log_history: Iterable[Mapping[str, Any]],
    path: str | Path,
    title: str = "Training loss",
    validation: Mapping[str, Any] | None = None,
) -> None:
    """Draw the logged loss and its moving average over the steps.

    Args:
        validation: `Curve.report` of a run that was validated: the same axis where it is a loss, else one of its own.

    Raises:
        InputError: no entry of the history has a loss.
    """
    steps, losses = loss_points(log_history)
    if not steps:
        raise InputError(f"{path}: the log has no loss to draw; log more often (--logging_steps)")

    figure, axes = empty_figure()
    marker = "o" if len(steps) < 30 else ""
    axes.plot(steps, losses, color="#9db7d5", linewidth=1, marker=marker, markersize=3, label="logged")
    if len(steps) > 4:
        axes.plot(steps, smoothed(losses), color="#1f4e8c", linewidth=2, label="moving average")
    axes.set(xlabel="optimizer step", ylabel="loss (cross entropy per token)", title=title)
    axes.grid(alpha=0.3)
    if validation is None:
        axes.legend(frameon=False)
    else:  # no place inside may be free of both curves
        lines = [*axes.get_lines(), *_draw_validation(axes, validation)]
        figure.legend(handles=lines, loc="outside lower center", ncols=len(lines), frameon=False)
    figure.savefig(path)


def _draw_validation(axes: Any, validation: Mapping[str, Any]) -> list[Any]:
    """The curve, with a ring around its best point; returns what the legend is to name."""
    metric, best = validation["metric"], validation["best_step"]
    points = [(point["step"], point["value"]) for point in validation["history"] if point["value"] is not None]
    if not points:
        return []
    share = metric != LOSS and ":" not in metric  # a function gives numbers of any kind
    steps, values = [step for step, _ in points], [100 * value if share else value for _, value in points]
    if metric != LOSS:
        axes = axes.twinx()
        axes.set_ylabel(f"validation: {metric}, % right" if share else f"validation: {metric}", color=COLOURS[1])
        axes.tick_params(axis="y", colors=COLOURS[1])
    marker = "o" if len(points) < 60 else ""
    lines = axes.plot(
        steps, values, color=COLOURS[1], linewidth=1.8, marker=marker, markersize=4, label=f"validation ({metric})"
    )
    ring = {"marker": "o", "markersize": 11, "markerfacecolor": "none", "markeredgewidth": 1.5, "linestyle": ""}
    lines += axes.plot([best], [values[steps.index(best)]], color=COLOURS[1], label=f"best, step {best:,}", **ring)
    return lines


def plot_accuracy(results: Sequence[Mapping[str, Any]], path: str | Path, title: str = "Accuracy") -> None:
    """Draw the accuracy (a share) of each entry over its step."""
    figure, axes = empty_figure()
    axes.plot([r["step"] for r in results], [100 * r["accuracy"] for r in results], color="#1f4e8c", marker="o")
    axes.set(xlabel="optimizer step", ylabel="accuracy, %", title=title)
    axes.grid(alpha=0.3)
    figure.savefig(path)


def plot_curves(
    curves: Mapping[str, Sequence[tuple[Sequence[int], Sequence[float]]]], path: str | Path, title: str
) -> None:
    """Draw a smoothed loss curve per label: the mean of its runs (steps, losses), and their range as a band.

    Steps are shares of each run's length, since methods differ in their number of steps.
    """
    figure, axes = empty_figure()
    for number, (label, runs) in enumerate(curves.items()):
        if not runs:
            continue
        shortest = min(len(losses) for _, losses in runs)
        smooth = [smoothed(list(losses[:shortest])) for _, losses in runs]
        steps = runs[0][0][:shortest]
        shares = [100 * step / steps[-1] for step in steps]
        means = [sum(values) / len(values) for values in zip(*smooth, strict=True)]
        colour, line = f"C{number % 10}", "-" if number < 10 else "--"
        text = label if "steps" in label else f"{label} ({steps[-1]:,} steps)"
        axes.plot(shares, means, color=colour, linestyle=line, linewidth=1.8, label=text)
        if len(runs) > 1:
            low, high = ([f(values) for values in zip(*smooth, strict=True)] for f in (min, max))
            axes.fill_between(shares, low, high, color=colour, alpha=0.15, linewidth=0)
    if axes.get_ylim()[1] > LARGEST_LINEAR:
        axes.set_yscale("log")
    axes.set(xlabel="share of the run, %", ylabel="loss (cross entropy per token)", title=title)
    axes.grid(alpha=0.3)
    axes.legend(frameon=False, fontsize="small")
    figure.savefig(path)


def plot_bars(bars: Sequence[Mapping[str, Any]], path: str | Path, title: str) -> None:
    """Draw accuracies as horizontal bars: `label`, `value`, `spread` and `before` in %, `series` decides the colour."""
    figure, axes = empty_figure(height=1.2 + 0.32 * len(bars))
    series = list(dict.fromkeys(bar["series"] for bar in bars))
    for place, bar in enumerate(bars):
        colour = COLOURS[series.index(bar["series"]) % len(COLOURS)]
        axes.barh(place, bar["value"], xerr=bar["spread"] or None, color=colour, height=0.7)
        axes.plot([bar["before"]] * 2, [place - 0.4, place + 0.4], color="black", linewidth=1.5)
        end = (bar["value"] + bar["spread"], place)
        axes.annotate(f"{bar['value']:.1f}", end, (4, 0), textcoords="offset points", va="center")
    axes.set_yticks(range(len(bars)), [bar["label"] for bar in bars], fontsize="small")
    axes.invert_yaxis()
    axes.set(xlabel="accuracy, %", title=title, xlim=(0, 108))
    axes.grid(axis="x", alpha=0.3)
    figure.savefig(path)


def empty_figure(height: float = 4.5, columns: int = 1) -> tuple[Any, Any]:
    """Figure and axes by the object interface, which needs no display and leaves a notebook's backend alone.

    `height` is in inches; the width is that of a page. Several `columns` give an array of as many axes.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, height), dpi=120, layout="constrained")
    FigureCanvasAgg(figure)
    return figure, figure.subplots(1, columns)
