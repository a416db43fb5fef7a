"""Curves of a run as PNG files: its loss, and its accuracy against steps."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from llava.errors import InputError

SMOOTHING_SHARE = 0.05  # the moving average looks at this share of the logged points, and at least three


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


def plot_loss(log_history: Iterable[Mapping[str, Any]], path: str | Path, title: str = "Training loss") -> None:
    """Draw the logged loss and its moving average over the steps.

    Raises:
        InputError: no entry of the history has a loss.
    """
    steps, losses = loss_points(log_history)
    if not steps:
        raise InputError(f"{path}: the log has no loss to draw; log more often (--logging_steps)")

    figure, axes = _empty()
    marker = "o" if len(steps) < 30 else ""
    axes.plot(steps, losses, color="#9db7d5", linewidth=1, marker=marker, markersize=3, label="logged")
    if len(steps) > 4:
        axes.plot(steps, smoothed(losses), color="#1f4e8c", linewidth=2, label="moving average")
    axes.set(xlabel="optimizer step", ylabel="loss (cross entropy per token)", title=title)
    axes.grid(alpha=0.3)
    axes.legend(frameon=False)
    figure.savefig(path)


def plot_accuracy(results: Sequence[Mapping[str, Any]], path: str | Path, title: str = "Accuracy") -> None:
    """Draw the accuracy (a share) of each entry over its step."""
    figure, axes = _empty()
    axes.plot([r["step"] for r in results], [100 * r["accuracy"] for r in results], color="#1f4e8c", marker="o")
    axes.set(xlabel="optimizer step", ylabel="accuracy, %", title=title)
    axes.grid(alpha=0.3)
    figure.savefig(path)


def _empty() -> tuple[Any, Any]:
    """Figure and axes by the object interface, which needs no display and leaves a notebook's backend alone."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 4.5), dpi=120, layout="constrained")
    FigureCanvasAgg(figure)
    return figure, figure.add_subplot()
