"""Learning rate and eps: a grid for each task, judged on the validation set.

    python scripts/study/rate_and_eps.py --budget 30                   (30 minutes on two CPU cores)
    python scripts/study/rate_and_eps.py --preset 0.5b --data data --rates 1e-7 3e-7 1e-6 3e-6

`--budget` is in minutes: no run is started after it, and the next call goes on. Runs start in the middle of the grid
and go outwards. Writes rate_and_eps.md with the best of each task and a heat map for each; a cell says so where
its run diverged or has not been run. `--method adamw` tries learning rates of AdamW.
"""

from __future__ import annotations

import argparse
import json

from pictures import plot_grid
from planned_run import Run, usual_run
from run_pool import Pool
from settings import Task, add_budget, chosen_tasks, deadline_of, from_middle, parsed, study_parser

from llava.errors import command

# (method, whether drawn) to learning rates; AdamW has no eps.
RATES = {
    ("mezo", True): ["2e-5", "5e-5", "1e-4", "2e-4"],
    ("mezo", False): ["1e-7", "3e-7", "1e-6", "3e-6"],
    ("adamw", True): ["1e-4", "3e-4", "1e-3"],
    ("adamw", False): ["3e-7", "1e-6", "3e-6"],
}
NO_EPS = "none"
METHODS = {"mezo": "MeZO", "adamw": "AdamW"}

Cell = tuple[str, str]  # learning rate and eps, as on the command line


def grid(options: argparse.Namespace, task: Task) -> dict[Cell, Run]:
    """The runs of a task, from the middle of the grid outwards."""
    rates, sizes = options.rates, options.eps
    cells = [(rate, eps) for rate in rates for eps in sizes]
    cells.sort(key=lambda cell: from_middle(cell[0], rates) + from_middle(cell[1], sizes))
    runs = {}
    for rate, eps in cells:
        changes = {"learning_rate": rate, "split": "val"} | ({} if eps == NO_EPS else {"zo_eps": eps})
        runs[rate, eps] = usual_run(options, options.method, task, "lm", options.seeds[0], **changes)
    return runs


def accuracies(runs: dict[Cell, Run], pool: Pool) -> dict[Cell, float | None]:
    """Accuracy by cell in %, None where the loss diverged; cells that have not been run are left out."""
    found = {cell: pool.accuracy(run) for cell, run in runs.items() if pool.is_done(run)}
    return {cell: None if accuracy is None else 100 * accuracy for cell, accuracy in found.items()}


def best_and_maps(grids: dict[Task, dict[Cell, Run]], pool: Pool, options: argparse.Namespace) -> list[str]:
    """The best cell of each task, and a heat map for each."""
    lines = ["## Best", "", "| task | zero-shot % | best % | lr | eps |", "|---|---|---|---|---|"]
    pictures = []
    for task, runs in grids.items():
        found = accuracies(runs, pool)
        before = 100 * pool.zero_shot_accuracy(task, "val")
        reached = {cell: accuracy for cell, accuracy in found.items() if accuracy is not None}
        if reached:
            best = max(reached, key=reached.__getitem__)
            lines.append(f"| {task.name} | {before:.1f} | {reached[best]:.1f} | {best[0]} | {best[1]} |")
        picture = options.output / f"{stem(options)}_{task.name}.png"
        records = len(json.loads(task.file("val").read_text(encoding="utf-8")))
        title = f"{task.name}: {METHODS[options.method]}, accuracy on the validation set"
        plot_grid(found, options.rates, options.eps, picture, title, before, records)
        pictures.append(f"![{task.name}]({picture.name})")
    return [*lines, "", *pictures]


def stem(options: argparse.Namespace) -> str:
    """What the page and its pictures are called."""
    return "rate_and_eps" if options.method == "mezo" else f"rate_{options.method}"


@command
def main() -> None:
    """Run what is missing and fits the budget, then write the page."""
    parser = study_parser(__doc__)
    add_budget(parser)
    parser.add_argument("--method", choices=("mezo", "adamw"), default="mezo")
    parser.add_argument("--rates", nargs="+", metavar="LR", help="default: three or four, by preset and method")
    parser.add_argument("--eps", nargs="+", default=["1e-4", "1e-3", "1e-2"])
    parser.set_defaults(seeds=[0])
    options = parsed(parser)
    options.rates = options.rates or RATES[options.method, options.preset == "demo"]
    options.eps = options.eps if options.method == "mezo" else [NO_EPS]
    grids = {task: grid(options, task) for task in chosen_tasks(options)}
    in_turns = [run for rank in zip(*(runs.values() for runs in grids.values()), strict=True) for run in rank]
    pool = Pool(options)
    title = "Learning rate and eps"
    print(pool.page(in_turns, stem(options), title, deadline_of(options), lambda: best_and_maps(grids, pool, options)))


if __name__ == "__main__":
    main()
