"""Directions a step at equal forwards, and which tokens are supervised.

    python scripts/study/directions.py --seeds 0                       (20 minutes on two CPU cores)
    python scripts/study/directions.py --preset 0.5b --data data --seeds 0

n = 1, 2, 4, 8 directions take steps / n steps. The learning rate stays, or (--scale_rate) grows with n, since the mean
of n estimates is calmer. The last run supervises the markers of the prompt too, as LLaVA-NeXT does.
Writes directions.md.
"""

from __future__ import annotations

from planned_run import usual_run
from run_pool import Pool
from settings import STEPS, chosen_tasks, parsed, rate, study_parser

from llava.errors import command

NUMBERS = (2, 4, 8)


@command
def main() -> None:
    """Run what is missing, then write the page."""
    parser = study_parser(__doc__, tasks=1)
    parser.add_argument("--scale_rate", action="store_true", help="a learning rate n times as large for n directions")
    options = parsed(parser)
    steps = options.steps or STEPS["mezo"]
    runs = []
    for seed in options.seeds:
        for task in chosen_tasks(options):
            runs.append(usual_run(options, "mezo", task, "lm", seed))
            for number in NUMBERS:
                changes = {"max_steps": max(1, steps // number), "zo_num_directions": number}
                if options.scale_rate:
                    changes["learning_rate"] = f"{number * float(rate(options, 'mezo', task)):g}"
                runs.append(usual_run(options, "mezo", task, "lm", seed, **changes))
            runs.append(usual_run(options, "mezo", task, "lm", seed, train_on_answers_only=False))
    print(Pool(options).page(runs, "directions", "Directions and labels"))


if __name__ == "__main__":
    main()
