"""Figure 7 of the study: batches of 1, 2, 4 and 8, with as many samples and with as many steps as the usual run.

    python scripts/study/batch_size.py --seeds 0                       (25 minutes on two CPU cores)
    python scripts/study/batch_size.py --preset 0.5b --data data --seeds 0

writes batch_size.md. The learning rate is that of batch 4 throughout, as in the study, or (--scale_rate) grows with the
batch, since the mean over a batch is calmer; then it is batch_size_scaled.md.
"""

from __future__ import annotations

import argparse
from typing import Any

from candidates import BATCH
from planned_run import usual_run
from run_pool import Pool
from settings import STEPS, Task, chosen_tasks, parsed, positive, rate, study_parser

from llava.errors import command

SIZES = [1, 2, 4, 8]


@command
def main() -> None:
    """Run what is missing, then write the page."""
    parser = study_parser(__doc__, tasks=1)
    parser.add_argument("--sizes", type=positive, nargs="+", default=SIZES, help="batches, in records")
    parser.add_argument("--scale_rate", action="store_true", help="a learning rate in proportion to the batch")
    options = parsed(parser)
    steps = options.steps or STEPS["mezo"]
    runs = [
        usual_run(options, "mezo", task, "lm", seed, max_steps=number, **batch(options, task, size))
        for seed in options.seeds
        for task in chosen_tasks(options)
        for size in options.sizes
        for number in sorted({steps, max(1, steps * BATCH // size)})
    ]
    name = "batch_size_scaled" if options.scale_rate else "batch_size"
    print(Pool(options).page(runs, name, "Batch size"))


def batch(options: argparse.Namespace, task: Task, size: int) -> dict[str, Any]:
    """The flags of a batch size; none for the usual one, so that the run is the one of the other experiments."""
    if size == BATCH:
        return {}
    scaled = {"learning_rate": f"{size / BATCH * float(rate(options, 'mezo', task)):g}"} if options.scale_rate else {}
    return {"per_device_train_batch_size": size, **scaled}


if __name__ == "__main__":
    main()
