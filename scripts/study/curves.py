"""Figures 5 and 6 of the study: training loss of AdamW and MeZO, and of ours against the usual scheme in bfloat16.

    python scripts/study/curves.py --inplace_seeds 0                   (15 minutes after methods_and_parts.py)
    python scripts/study/curves.py --preset 0.5b --data data --seeds 0 --inplace_seeds 0

The study saw the loss of MeZO rise again after an early fall. The usual scheme adds eps z to the weights, takes away
2 eps z, adds eps z, all rounded to bfloat16, so the weights drift; ours never writes a perturbed weight. The second
picture trains both from the same weights with the same batches and directions (storage.py has the schemes). Writes
curves.md with both pictures and how far each curve rises after its minimum.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from statistics import mean
from typing import Any

import torch
from pictures import plot_against
from planned_run import usual_run
from run_pool import Pool
from settings import STEPS, Task, chosen_tasks, counting, model_of, once, parsed, rate, study_parser
from storage import run as run_scheme

from llava.errors import command
from llava.runs.plots import LOSS
from llava.runs.runs import rise_after_minimum
from llava.runs.style import moving_average

SCHEMES = {"native": "ours", "inplace": "in place"}
TEST_RECORDS = 200  # for the test loss on the way
POINT = 25  # steps to a point of the picture


def losses_of(scheme: str, task: Task, seed: int, options: argparse.Namespace) -> list[float]:
    """Training losses of all steps with a scheme; a finished run is read back."""
    path = options.output / "schemes" / f"{task.name}-{scheme}-{options.steps or STEPS['mezo']}-{seed}.json"
    return once(path, lambda: run_scheme(scheme, _task(task, options), seed, TEST_RECORDS))["losses"]


def _task(task: Task, options: argparse.Namespace) -> dict[str, Any]:
    tiles = ["--image_aspect_ratio", "anyres_max_9", "--image_grid_pinpoints", "(1x1),...,(6x6)"]
    return {
        "model": model_of(options),
        "train": task.file("train"),
        "test": task.file("val"),
        "images": task.images,
        "flags": [] if options.preset == "demo" else tiles,
        "lr": float(rate(options, "mezo", task)),
        "batch": 4,
        "steps": options.steps or STEPS["mezo"],
    }


def points(losses: list[float]) -> tuple[list[int], list[float]]:
    """Steps and means of every `POINT` losses."""
    ends = range(POINT, len(losses) + 1, POINT)
    return list(ends), [sum(losses[end - POINT : end]) / POINT for end in ends]


def mean_curve(runs: list[tuple[list[int], list[float]]]) -> list[tuple[float, float]]:
    """The smoothed mean over seeds."""
    means = [mean(values) for values in zip(*(losses for _, losses in runs), strict=True)]
    return list(zip(*moving_average(runs[0][0], means), strict=True))


def compare(task: Task, options: argparse.Namespace) -> list[str]:
    """Lines of Markdown about the two schemes on a task, with their picture."""
    found = {
        label: [points(losses_of(scheme, task, seed, options)) for seed in options.inplace_seeds]
        for scheme, label in SCHEMES.items()
    }
    picture: Path = options.output / f"curves_inplace_{task.name}.png"
    title = f"{task.name}: MeZO in bfloat16, perturbed without writing (ours) and in place"
    plot_against({label: mean_curve(runs) for label, runs in found.items()}, "ours", picture, title, LOSS)
    lines = [f"## In place: {task.name}", "", f"![{task.name}]({picture.name})", ""]
    lines += ["| scheme | last tenth | rise after the minimum % |", "|---|---|---|"]
    for label, runs in found.items():
        last = mean(mean(losses[-len(losses) // 10 :]) for _, losses in runs)
        rises = [rise_after_minimum(losses) or 0.0 for _, losses in runs]
        lines.append(f"| {label} | {last:.3f} | {100 * max(rises):.0f} |")
    return [*lines, ""]


@command
def main() -> None:
    """Run what is missing, then write the page."""
    parser = study_parser(__doc__)
    parser.add_argument(
        "--inplace_seeds", type=counting, nargs="*", default=[0, 1, 2], help="none: leave that part out"
    )
    options = parsed(parser)
    tasks = chosen_tasks(options)
    cases = [(method, task, seed) for seed in options.seeds for task in tasks for method in ("adamw", "mezo")]
    runs = [usual_run(options, method, task, "lm", seed) for method, task, seed in cases]
    inplace_tasks = tasks if options.inplace_seeds else []
    if options.preset == "demo":
        torch.set_num_threads(1)  # a second one makes the schemes of a tiny model several times slower

    def below() -> list[str]:
        return [line for task in inplace_tasks for line in compare(task, options)]

    print(Pool(options).page(runs, "curves", "Loss curves", more=below))


if __name__ == "__main__":
    main()
