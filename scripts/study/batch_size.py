"""Figure 7 of the study: batches of 1, 2, 4 and 8, with as many samples and with as many steps as the usual run.

    python scripts/study/batch_size.py --seeds 0                       (25 minutes on two CPU cores)
    python scripts/study/batch_size.py --preset 0.5b --data data --seeds 0

writes batch_size.md. The learning rate is that of batch 4 throughout, as in the study.
"""

from __future__ import annotations

from planned_run import usual_run
from run_pool import Pool
from settings import STEPS, chosen_tasks, parsed, study_parser

from llava.errors import command

SIZES = (1, 2, 4, 8)
USUAL = 4


@command
def main() -> None:
    """Run what is missing, then write the page."""
    options = parsed(study_parser(__doc__, tasks=1))
    steps = options.steps or STEPS["mezo"]
    runs = [
        usual_run(options, "mezo", task, "lm", seed, max_steps=number, **batch(size))
        for seed in options.seeds
        for task in chosen_tasks(options)
        for size in SIZES
        for number in sorted({steps, max(1, steps * USUAL // size)})
    ]
    print(Pool(options).page(runs, "batch_size", "Batch size"))


def batch(size: int) -> dict[str, int]:
    """The flag of a batch size; none for the usual one, so that the run is the one of the other experiments."""
    return {} if size == USUAL else {"per_device_train_batch_size": size}


if __name__ == "__main__":
    main()
