"""Tables 7 and 8 of the study: zero-shot, AdamW and MeZO, with three choices of what is trained, on three tasks.

    python scripts/study/methods_and_parts.py                          (90 minutes on two CPU cores)
    python scripts/study/methods_and_parts.py --preset 0.5b --data data --seeds 0       (docs/reproduction.md)

writes methods_and_parts.md with mean and spread over the seeds, MeZO's share of AdamW's gain, and pictures.
"""

from __future__ import annotations

from planned_run import usual_run
from run_pool import Pool
from settings import PARTS, chosen_tasks, parsed, study_parser

from llava.errors import command


@command
def main() -> None:
    """Run what is missing, then write the page."""
    parser = study_parser(__doc__)
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS))
    options = parsed(parser)
    runs = [
        usual_run(options, method, task, parts, seed)
        for seed in options.seeds
        for task in chosen_tasks(options)
        for method in ("adamw", "mezo")
        for parts in options.parts
    ]
    print(Pool(options).page(runs, "methods_and_parts", "Methods and parts"))


if __name__ == "__main__":
    main()
