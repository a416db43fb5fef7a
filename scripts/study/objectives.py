"""Objectives that are not a loss (Malladi et al. 2023, section 3.3), each from the same start with the same records.

    python scripts/study/objectives.py --seeds 0 --tasks scan          (20 minutes on two CPU cores)

accuracy is that of single tokens, exact_match that of generated answers. A single batch has few values of either, so
batches are larger than for the loss, points lie further apart, and the step's length does not follow the differences'.
Writes objectives.md.
"""

from __future__ import annotations

from candidates import BATCH
from planned_run import usual_run
from run_pool import Pool
from settings import STEPS, chosen_tasks, parsed, positive, study_parser

from llava.errors import command

SETTINGS = {"zo_eps": "1e-2", "zo_rule": "normalized", "lr_scheduler_type": "linear"}


@command
def main() -> None:
    """Run what is missing, then write the page."""
    parser = study_parser(__doc__)
    parser.add_argument("--objectives", nargs="+", default=["loss", "accuracy", "exact_match"])
    parser.add_argument("--batch", type=positive, default=32, help="records a step; of the study's 5000 x 4 in all")
    parser.add_argument("--rate", default="2e-3")
    options = parsed(parser)
    steps = (options.steps or STEPS["mezo"]) * BATCH // options.batch
    changes = {"per_device_train_batch_size": options.batch, "learning_rate": options.rate, "max_steps": steps}
    runs = [
        usual_run(options, "mezo", task, "lm", seed, **changes, **SETTINGS, zo_objective=objective)
        for seed in options.seeds
        for task in chosen_tasks(options)
        for objective in options.objectives
    ]
    print(Pool(options).page(runs, "objectives", "Objectives"))


if __name__ == "__main__":
    main()
