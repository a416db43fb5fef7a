"""Tables 7 and 8 of the study: zero-shot, AdamW and MeZO, with three choices of what is trained, on three tasks.

    python scripts/study/methods_and_parts.py                          (90 minutes on two CPU cores)
    python scripts/study/methods_and_parts.py --preset 0.5b --data data --seeds 0       (docs/reproduction.md)

writes methods_and_parts.md with mean and spread over the seeds, MeZO's share of AdamW's gain, and pictures.
"""

from __future__ import annotations

from run_pool import run_all, usual_run
from settings import PARTS, chosen_tasks, study_parser

from llava.errors import command
from llava.eval.report import write


@command
def main() -> None:
    """Run what is missing, then write the page."""
    parser = study_parser(__doc__)
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS))
    options = parser.parse_args()
    runs = [
        usual_run(options, method, task, parts, seed)
        for seed in options.seeds
        for task in chosen_tasks(options)
        for method in ("adamw", "mezo")
        for parts in options.parts
    ]
    print(write(run_all(runs, options), options.output / "methods_and_parts.md", "Methods and parts"))


if __name__ == "__main__":
    main()
