"""docs/demo.png: the training loss of a demo run, and its accuracy before and after.

    bash scripts/train/mezo_onevision_si.sh                     the demo, into runs/mezo-demo
    python scripts/docs/demo_picture.py runs/mezo-demo          the picture of it

Equal runs give equal bytes, with one version of matplotlib. The README says the numbers of the same run.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from generated import ROOT
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from llava.runs.plots import loss_points, step_name
from llava.runs.runs import METHODS, samples_per_step
from llava.runs.style import COLOURS, PALE, moving_average, whole_ticks

PICTURE = ROOT / "docs" / "demo.png"
DARK, GREY = COLOURS[0], "#555555"
WIDTH, HEIGHT, DPI = 1000, 320, 100  # in pixels


def draw(run: Path, picture: Path) -> None:
    """Draw the picture of a finished run of `scripts/train/*_onevision_si.sh`.

    Raises:
        SystemExit: the folder lacks a file of such a run, or its log has no loss.
    """
    names = ("report", "training_args", "trainer_state", "eval_before", "eval_after")
    report, arguments, state, before, after = (_read(run / f"{name}.json") for name in names)
    steps, losses = loss_points(state["log_history"])
    if not steps:
        raise SystemExit(f"{run / 'trainer_state.json'}: the log has no loss")

    figure = Figure(figsize=(WIDTH / DPI, HEIGHT / DPI), dpi=DPI, layout="constrained")
    FigureCanvasAgg(figure)
    left, right = figure.subplots(1, 2, width_ratios=(2, 1))

    left.plot(steps, losses, color=PALE, linewidth=1.2, label="logged")
    places, averages = moving_average(steps, losses)
    label = f"mean of {len(steps) - len(places) + 1} logged values"
    left.plot(places, averages, color=DARK, linewidth=2, label=label)
    method = METHODS[report["trainer_mode"]]
    left.set_title(f"Training loss over {report['steps']:,} steps of {method}", loc="left", fontsize=11)
    name = step_name(report["steps"], samples_per_step(arguments))
    left.set(xlim=(0, steps[-1]), ylim=(0, None), xlabel=name, ylabel="cross entropy per token")
    whole_ticks(left.xaxis)
    left.legend(frameon=False)

    shares = [100 * result["accuracy"] for result in (before, after)]
    bars = right.bar(["before", "after"], shares, color=[PALE, DARK], width=0.55)
    right.bar_label(bars, [f"{share:.1f} %" for share in shares], padding=3, fontsize=11)
    right.set_title(f"Right answers to {after['total']} test questions", loc="left", fontsize=11)
    right.set(ylim=(0, 100), yticks=[])
    right.spines["left"].set_visible(False)

    for axes in (left, right):
        axes.spines[["top", "right"]].set_visible(False)
        axes.tick_params(colors=GREY, length=0 if axes is right else 3)
    figure.savefig(picture, metadata={"Software": None})  # without the version that would change the bytes


def _read(file: Path) -> dict[str, Any]:
    try:
        found: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise SystemExit(f"{file} is not there: is {file.parent} a finished run of mezo_onevision_si.sh?") from error
    return found


def main(argv: Sequence[str] | None = None) -> None:
    """Entry point, see the module's docstring."""
    parser = argparse.ArgumentParser(description="Draw docs/demo.png.")
    parser.add_argument("run", type=Path, help="folder of a finished demo run")
    parser.add_argument("--output", type=Path, default=PICTURE, help="another place for the picture")
    options = parser.parse_args(argv)
    draw(options.run, options.output)


if __name__ == "__main__":
    main()
