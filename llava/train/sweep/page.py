"""The page of a sweep: best command line, a table of all trials, a map of their values and their curves."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from llava.mezo.durable import write_durably
from llava.runs.style import COLOURS, PALE, empty_figure, upper_limit, whole_ticks
from llava.train.sweep import trial as trials
from llava.train.sweep.settings import TRIALS, Sweep

PAGE, BEST, BEST_COMMAND = "sweep.md", "best.json", "best.txt"
MAP, CURVES = "map.png", "curves.png"


@dataclass(frozen=True)
class Result:
    """What is known of a trial: `outcome` None for one that has not ended, `value` None for one without any."""

    number: int
    folder: Path
    values: dict[str, str]
    outcome: str | None
    value: float | None
    seconds: float
    points: dict[int, float | None]

    @property
    def last(self) -> float | None:
        """The last point of its curve."""
        return self.points[max(self.points)] if self.points else None

    @property
    def kind(self) -> str:
        """finished, stopped, diverged, failed or unfinished."""
        return "unfinished" if self.outcome is None else self.outcome.split(":")[0].split()[0]


def results(sweep: Sweep) -> list[Result]:
    """Of all trials that were begun, in their order."""
    found = []
    for folder in sorted((sweep.folder / TRIALS).glob("[0-9]*")):
        noted = trials.noted(folder)
        if "number" not in noted:
            continue
        own = noted.get("outcome"), noted.get("value"), noted.get("seconds", 0.0), trials.curve(folder)
        found.append(Result(noted["number"], folder, noted["values"], *own))
    return found


def best_of(sweep: Sweep, found: Sequence[Result]) -> Result | None:
    """The finished trial with the best value, of equal ones the first."""
    sign = 1 if sweep.greater_is_better else -1
    finished = [one for one in found if one.value is not None]
    return max(finished, key=lambda one: (sign * float(one.value or 0.0), -one.number)) if finished else None


def write_page(sweep: Sweep) -> Result | None:
    """Write the page, its pictures and the best command line; returns the best trial, None while none has finished."""
    found = results(sweep)
    best = best_of(sweep, found)
    lines = ["# Sweep", ""]
    if best is None:
        lines += ["No trial has finished; `--halving 0` lets all of them go on to their end.", ""]
    else:
        words = sweep.words(best.values, sweep.folder / "best")
        command = trials.command_line(words)
        told = {"trial": best.number, "metric": sweep.metric, "value": best.value, "values": best.values}
        told |= {"command": command, "words": words}
        write_durably(sweep.folder / BEST, json.dumps(told, indent=2) + "\n")
        write_durably(sweep.folder / BEST_COMMAND, command + "\n")
        lines += [f"Best: trial {best.number}, {sweep.metric} {best.value:.4f}", "", "```bash", command, "```", ""]
    lines += _table(sweep, found, best)
    numbers = [one.name for one in sweep.space if len({result.values[one.name] for result in found}) > 1]
    if numbers and any(one.value is not None for one in found):
        draw_map(sweep, found, sweep.folder / MAP)
        lines += ["", "## Values", "", f"![{sweep.metric} over the values of the space]({MAP})"]
    if any(one.points for one in found):
        draw_curves(sweep, found, best, sweep.folder / CURVES)
        lines += ["", "## Curves", "", f"![Validation of the trials over their steps]({CURVES})"]
    write_durably(sweep.folder / PAGE, "\n".join(lines) + "\n")
    return best


def _table(sweep: Sweep, found: Sequence[Result], best: Result | None) -> list[str]:
    names = [one.name for one in sweep.space]
    lines = [
        "| trial | " + " | ".join(names) + f" | {sweep.metric} | steps | minutes | |",
        "|---" * (len(names) + 5) + "|",
    ]
    for one in found:
        last = max(one.points, default=0)
        value = "" if one.value is None else f"{one.value:.4f}"
        said = "best" if best is not None and one.number == best.number else one.outcome or "unfinished"
        said = " ".join(said.split())[:160].replace("|", "\\|")
        cells = [
            str(one.number),
            *(one.values[name] for name in names),
            value,
            f"{last:,}",
            f"{one.seconds / 60:.1f}",
            said,
        ]
        lines.append("| " + " | ".join(cells) + " |")
    return lines


def draw_map(sweep: Sweep, found: Sequence[Result], path: Path) -> None:
    """Draw the trials over the first two parameters, bright where they are good; small ones were stopped on the way.

    Those that diverged, failed or have not ended are crosses. With one parameter, the metric is drawn over its values.
    """
    across, up = sweep.space[0], sweep.space[1] if len(sweep.space) > 1 else None
    figure, axes = empty_figure(height=4.6)
    told = [
        (one, one.value if one.value is not None else one.last) for one in found if one.kind in ("finished", "stopped")
    ]
    shown = [(one, value) for one, value in told if value is not None]
    xs = [_place(across, one) for one, _ in shown]
    ys = [value if up is None else _place(up, one) for one, value in shown]
    ranked = sorted((value for _, value in shown), reverse=not sweep.greater_is_better)
    ends = sorted((ranked[len(ranked) // 4], ranked[-1]))  # the worst quarter has one colour
    look = {"cmap": "cividis" if sweep.greater_is_better else "cividis_r", "vmin": ends[0], "vmax": ends[1]}
    sizes = [160 if one.value is not None else 50 for one, _ in shown]
    points = axes.scatter(xs, ys, sizes, [value for _, value in shown], edgecolors="black", zorder=3, **look)
    for x, y, (_, value) in zip(xs, ys, shown, strict=True):
        axes.annotate(f"{value:.3g}", (x, y), (0, 9), textcoords="offset points", ha="center", fontsize="small")
    if up is not None:
        for marker, kind in zip("+1x", ("diverged", "failed", "unfinished"), strict=True):
            rest = [(_place(across, one), _place(up, one)) for one in found if one.kind == kind]
            if rest:
                axes.scatter(*zip(*rest, strict=True), marker=marker, s=60, color=COLOURS[1], label=kind, zorder=2)
    _name_axis(axes, "x", across)
    if up is None:
        axes.set_ylabel(sweep.metric)
    else:
        _name_axis(axes, "y", up)
        figure.colorbar(points, ax=axes, label=f"{sweep.metric} (small: when it was stopped)")
        if axes.get_legend_handles_labels()[0]:
            figure.legend(loc="outside lower center", ncols=3, frameon=False)
    axes.margins(0.12)
    axes.grid(alpha=0.3)
    figure.savefig(path)


def _place(parameter: Any, result: Result) -> float:
    """Where a trial lies along a parameter: choices at 0, 1, 2..."""
    value = result.values[parameter.name]
    return float(parameter.choices.index(value)) if parameter.choices else float(value)


def _name_axis(axes: Any, which: str, parameter: Any) -> None:
    getattr(axes, f"set_{which}label")(parameter.name)
    if parameter.choices:
        getattr(axes, f"set_{which}ticks")(range(len(parameter.choices)), parameter.choices)
    elif parameter.log:
        getattr(axes, f"set_{which}scale")("log")


def draw_curves(sweep: Sweep, found: Sequence[Result], best: Result | None, path: Path) -> None:
    """Draw what trials were validated at: the best one dark, those that were given up with a cross at their end."""
    figure, axes = empty_figure()
    curves = [
        (one, [(step, value) for step, value in sorted(one.points.items()) if value is not None]) for one in found
    ]
    curves = [(one, points) for one, points in curves if points]
    cross: dict[str, Any] = {"color": COLOURS[1], "marker": "x", "linestyle": ""}
    limit = None if sweep.greater_is_better else upper_limit([[value for _, value in points] for _, points in curves])
    for one, points in curves:
        first = best is not None and one.number == best.number
        look: dict[str, Any] = {"color": COLOURS[0] if first else PALE, "linewidth": 2.2 if first else 1.2}
        look |= {"marker": "o", "markersize": 3, "zorder": 3 if first else 2}
        axes.plot(*zip(*points, strict=True), label=f"trial {one.number}, the best" if first else "_", **look)
        if one.kind in ("stopped", "diverged"):
            step, value = points[-1]
            axes.plot(step, value if limit is None else min(value, 0.985 * limit), **cross, markersize=8, zorder=4)
    axes.plot([], [], color=PALE, label="others")
    axes.plot(
        [], [], label="stopped or diverged" + ("" if limit is None else "; at the top: above the picture"), **cross
    )
    if limit is not None:
        axes.set_ylim(0.9 * min(value for _, points in curves for _, value in points), limit)
    axes.set(xlabel="optimizer step", ylabel=f"validation: {sweep.metric}")
    whole_ticks(axes.xaxis)
    axes.grid(alpha=0.3)
    figure.legend(loc="outside lower center", ncols=3, frameon=False)
    figure.savefig(path)
