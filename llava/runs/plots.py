"""Pictures of runs as PNG files: losses, accuracy against steps, accuracies side by side."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from llava.errors import InputError
from llava.runs.progress_panels import HEIGHT, Panel, Rows, progress_panels
from llava.runs.style import (
    COLOURS,
    HATCHES,
    LARGEST_LINEAR,
    PALE,
    cut_off,
    empty_figure,
    line_style,
    moving_average,
    upper_limit,
    whole_ticks,
)
from llava.runs.validation import LOSS

TRAINING_LOSS = "training loss (cross entropy per token)"
MARKED_POINTS = 30  # more points than this are a line without markers


def loss_points(log_history: Iterable[Mapping[str, Any]]) -> tuple[list[int], list[float]]:
    """Steps and losses of the entries of `trainer_state.json`'s `log_history` that have both."""
    entries = [entry for entry in log_history if "loss" in entry and "step" in entry]
    return [int(entry["step"]) for entry in entries], [float(entry["loss"]) for entry in entries]


def step_name(steps: int, samples: int | None) -> str:
    """The title of an axis of so many steps; a step is of `samples` records, None if their number changes."""
    return "optimizer step" + ("" if samples is None else f" (of {samples} samples, {samples * steps:,} in all)")


def plot_loss(
    log_history: Iterable[Mapping[str, Any]],
    path: str | Path,
    title: str = "Training loss",
    samples: int | None = None,
    validation: Mapping[str, Any] | None = None,
    gradients: Rows = (),
    probes: Rows = (),
) -> None:
    """Draw the logged loss and its moving average over the steps, each of so many `samples` where that is given.

    Args:
        validation: `Curve.report` of a run that was validated: the same axis where it is a loss, else one of its own.
        gradients, probes: as for `progress_panels`, below the loss.

    Raises:
        InputError: no entry of the history has a loss.
    """
    steps, losses = loss_points(log_history)
    if not steps:
        raise InputError(f"{path}: the log has no loss to draw; log more often (--logging_steps)")

    figure, axes, lowest = _with_panels(progress_panels(gradients, probes))
    marker = "o" if len(steps) < MARKED_POINTS else ""
    axes.plot(steps, losses, color=PALE, linewidth=1, marker=marker, markersize=3, label="logged")
    if len(steps) > 4:
        places, averages = moving_average(steps, losses)
        label = f"mean of {len(steps) - len(places) + 1} logged values"
        axes.plot(places, averages, color=COLOURS[0], linewidth=2, label=label)
    axes.set(ylabel="loss (cross entropy per token)", title=title)
    lowest.set_xlabel(step_name(steps[-1], samples))
    whole_ticks(axes.xaxis)
    if max(losses) > LARGEST_LINEAR:
        axes.set_yscale("log")
    axes.grid(alpha=0.3)
    if validation is None:
        axes.legend(frameon=False)
    else:  # no place inside may be free of both curves
        lines = [*axes.get_lines(), *_draw_validation(axes, validation)]
        figure.legend(handles=lines, loc="outside lower center", ncols=len(lines), frameon=False)
    figure.savefig(path)


def _with_panels(panels: Sequence[Panel]) -> tuple[Any, Any, Any]:
    """Figure, axes above the panels, and the lowest axes."""
    if not panels:
        figure, axes = empty_figure()
        return figure, axes, axes
    ratios, height = [2.2, *[1.0] * len(panels)], 4.5 + HEIGHT * len(panels)
    figure, (axes, *below) = empty_figure(height, rows=len(ratios), sharex=True, height_ratios=ratios)
    for draw, on in zip(panels, below, strict=True):
        draw(on)
    return figure, axes, below[-1]


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


def plot_range_test(found: Mapping[str, Any], path: str | Path) -> None:
    """Draw the loss over the rate that grew, with the rate that broke it and the one that is made of it.

    Args:
        found: `RangeTest.report`.
    """
    figure, axes = empty_figure()
    marks = [(mark["rate"], mark["loss"]) for mark in found["marks"] if mark["loss"] is not None]
    axes.plot(*zip(*marks, strict=True), color=COLOURS[0], marker="o", markersize=4, label="loss of the same records")
    axes.axhline(found["start"], color=PALE, label="before the first step")
    for name, label, line in (("breaking_rate", "breaks at", "--"), ("learning_rate", "for a run", "-")):
        if found[name] is not None:
            axes.axvline(found[name], color=COLOURS[1], linestyle=line, label=f"{label} {found[name]:.2g}")
    axes.set(xlabel="learning rate", ylabel="loss (cross entropy per token)", xscale="log", title="Range test")
    axes.set_ylim(0, 2 * found["start"])
    axes.grid(alpha=0.3)
    axes.legend(frameon=False)
    figure.savefig(path)


def plot_accuracy(results: Sequence[Mapping[str, Any]], path: str | Path) -> None:
    """Draw the accuracy (a share) of each entry over its step."""
    figure, axes = empty_figure()
    axes.plot([r["step"] for r in results], [100 * r["accuracy"] for r in results], color=COLOURS[0], marker="o")
    axes.set(xlabel="optimizer step", ylabel="accuracy, %", title="Accuracy")
    whole_ticks(axes.xaxis)
    axes.grid(alpha=0.3)
    figure.savefig(path)


def plot_curves(
    curves: Mapping[str, Sequence[tuple[Sequence[float], Sequence[float]]]],
    path: str | Path,
    title: str,
    places: str = "optimizer step",
) -> None:
    """Draw a smoothed loss curve per label: the mean of its runs (places, losses), and their range as a band.

    A curve that diverged is cut off, and its name in the legend says so. `places` is what a run's first numbers count.
    """
    figure, axes = empty_figure(height=4.2 + 0.22 * len(curves))
    lines = {label: _mean_and_range(runs) for label, runs in curves.items() if runs}
    limit = upper_limit([means for _, means, _, _ in lines.values()])
    for number, (label, (steps, means, low, high)) in enumerate(lines.items()):
        style = line_style(number) | {"markevery": (0.02 * number, 0.15), "markersize": 5, "linewidth": 1.8}
        axes.plot(steps, means, label=cut_off(label, means, limit), **style)
        axes.fill_between(steps, low, high, color=style["color"], alpha=0.15, linewidth=0)
    if limit is not None:
        axes.set_ylim(0, limit)
    elif axes.get_ylim()[1] > LARGEST_LINEAR:
        axes.set_yscale("log")
    axes.set(xlabel=places, ylabel=TRAINING_LOSS, title=title)
    axes.set_xlim(left=0)
    whole_ticks(axes.xaxis)
    axes.grid(alpha=0.3)
    figure.legend(loc="outside lower left", frameon=False, fontsize="small")
    figure.savefig(path)


def _mean_and_range(runs: Sequence[tuple[Sequence[float], Sequence[float]]]) -> tuple[list[float], ...]:
    """Places, and mean, least and largest of the smoothed losses there, as far as the shortest run goes."""
    shortest = min(len(losses) for _, losses in runs)
    smooth = [moving_average(places[:shortest], losses[:shortest]) for places, losses in runs]
    values = list(zip(*(losses for _, losses in smooth), strict=True))
    means = [sum(found) / len(found) for found in values]
    return smooth[0][0], means, [min(found) for found in values], [max(found) for found in values]


def plot_bars(bars: Sequence[Mapping[str, Any]], path: str | Path, title: str) -> None:
    """Draw accuracies as horizontal bars, in blocks by `block`.

    A bar has `label`, `value`, `spread` and `before` in %; `series` decides colour and hatch, and is in the legend.
    """
    from matplotlib.patches import Patch

    blocks = list(dict.fromkeys(bar["block"] for bar in bars))
    series = list(dict.fromkeys(bar["series"] for bar in bars))
    places = [place + 0.9 * blocks.index(bar["block"]) for place, bar in enumerate(bars)]
    lines = max(bar["label"].count("\n") + 1 for bar in bars)
    figure, axes = empty_figure(height=1.8 + max(0.3, 0.18 * lines) * len(bars) + 0.25 * len(blocks))
    looks: dict[str, dict[str, Any]] = {
        name: {"facecolor": COLOURS[k % len(COLOURS)], "hatch": HATCHES[k % len(HATCHES)], "edgecolor": "white"}
        for k, name in enumerate(series)
    }
    for place, bar in zip(places, bars, strict=True):
        axes.barh(place, bar["value"], height=0.75, **looks[bar["series"]])
        axes.errorbar(bar["value"], place, xerr=bar["spread"] or None, color="black", capsize=3, linewidth=1.2)
        (before,) = axes.plot([bar["before"]] * 2, [place - 0.45, place + 0.45], color="black", linewidth=2)
        end = (bar["value"] + bar["spread"], place)
        axes.annotate(f"{bar['value']:.1f}", end, (6, 0), textcoords="offset points", va="center")
    for block in blocks:
        first = min(place for place, bar in zip(places, bars, strict=True) if bar["block"] == block)
        axes.annotate(block, (0, first - 0.5), (3, 0), textcoords="offset points", va="bottom", weight="bold")
    axes.set_yticks(places, [bar["label"] for bar in bars], fontsize="small")
    axes.set_ylim(places[-1] + 0.7, -1.3)
    axes.set(xlabel="accuracy, % of the answers", title=title, xlim=(0, 108))
    axes.grid(axis="x", alpha=0.3)
    axes.set_axisbelow(True)
    before.set_label("before training")
    keys = [Patch(label=name, **look) for name, look in looks.items()]
    legend = [*keys, before]
    if any(bar["spread"] for bar in bars):
        legend.append(axes.errorbar([], [], xerr=[], color="black", capsize=3, label="± standard deviation over seeds"))
    figure.legend(handles=legend, loc="outside lower center", ncols=len(legend), frameon=False, fontsize="small")
    figure.savefig(path)
