"""Every answer spread evenly over an epoch, against random order: pairs of runs that differ in nothing else.

    python scripts/study/order.py --steps 2500                         (90 minutes on two CPU cores)

Writes order.md, with the difference of each pair.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from statistics import mean, stdev

from planned_run import Run, usual_run
from run_pool import Pool
from settings import chosen_tasks, parsed, study_parser

from llava.errors import command

ORDERS = ("off", "auto")

Pair = tuple[Run, ...]


def pairs(options: argparse.Namespace) -> dict[str, list[Pair]]:
    """The runs of each task, a pair a seed: random order, every answer spread."""
    return {
        task.name: [
            tuple(usual_run(options, "mezo", task, "lm", seed, stratify_answers=order) for order in ORDERS)
            for seed in options.seeds
        ]
        for task in chosen_tasks(options)
    }


def differences(found: Mapping[str, list[Pair]], pool: Pool) -> list[str]:
    """A line a task: by how many points the second of each pair is better."""
    lines = ["| task | seeds | spread - random, points | mean ± standard error |", "|---|---|---|---|"]
    for task, runs in found.items():
        accuracies = [tuple(map(pool.accuracy, pair)) for pair in runs]
        gains = [100 * (other - one) for one, other in accuracies if one is not None and other is not None]
        if not gains:
            continue
        error = f" ± {stdev(gains) / len(gains) ** 0.5:.1f}" if len(gains) > 1 else ""
        shown = ", ".join(f"{gain:+.1f}" for gain in gains)
        lines.append(f"| {task} | {len(gains)} | {shown} | {mean(gains):+.1f}{error} |")
    return lines


@command
def main() -> None:
    """Run what is missing, then write the page."""
    options = parsed(study_parser(__doc__))
    found, pool = pairs(options), Pool(options)
    in_turns = [run for seeds in zip(*found.values(), strict=True) for pair in seeds for run in pair]
    print(pool.page(in_turns, "order", "Order of the data", more=lambda: differences(found, pool)))


if __name__ == "__main__":
    main()
