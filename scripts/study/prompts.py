"""Table 5 of the study: seven prompts for the yes / no task, zero-shot and after one epoch of MeZO.

    python scripts/study/prompts.py                                    (15 minutes on two CPU cores)
    python scripts/study/prompts.py --preset 0.5b --data data --seeds 0

writes prompts.md: accuracy of each prompt before and after 250 steps. Records differ in the human turn alone.
"""

from __future__ import annotations

import json
from pathlib import Path
from statistics import mean

from planned_run import Run, usual_run
from run_pool import Pool
from settings import DRAWN_SIZES, Task, chosen_tasks, parsed, study_parser

from llava.data.public_sets.br35h import PROMPTS
from llava.errors import InputError, command
from llava.samples.loading import load_file, records_text

EPOCH = 250  # steps of batch 4 over 1000 records


def with_prompt(task: Task, number: int, folder: Path) -> Task:
    """The task asked with the study's prompt `number` (from 1), as records of its own over the same pictures."""
    name = f"{task.name}-prompt{number}"
    asked = Task(name, folder / name, task.images, base=task.name)
    asked.folder.mkdir(parents=True, exist_ok=True)
    for split in DRAWN_SIZES:
        records = load_file(task.file(split))
        for record in records:
            record["conversations"][0]["value"] = PROMPTS[number - 1]
        asked.file(split).write_text(records_text(records), encoding="utf-8")
    return asked


def by_prompt(runs: dict[Task, list[Run]], steps: int, pool: Pool) -> list[str]:
    """A table with a row for each prompt."""
    lines = ["## By prompt", ""]
    lines += [f"| prompt | zero-shot % | after {steps} steps %, by seed | mean |", "|---|---|---|---|"]
    for prompt, (task, of_prompt) in zip(PROMPTS, runs.items(), strict=True):
        after = [accuracy for run in of_prompt if (accuracy := pool.accuracy(run)) is not None]
        by_seed = ", ".join(f"{100 * accuracy:.1f}" for accuracy in after)
        average = f"{100 * mean(after):.1f}" if after else "diverged"
        before = 100 * pool.zero_shot_accuracy(task, "test")
        lines.append(f"| `{json.dumps(prompt)}` | {before:.1f} | {by_seed} | {average} |")
    return lines


@command
def main() -> None:
    """Run what is missing, then write the page."""
    options = parsed(study_parser(__doc__, tasks=1))
    tasks = chosen_tasks(options)
    if len(tasks) != 1:
        raise InputError(f"--tasks {' '.join(options.tasks)}: give one yes / no task")
    folder = options.output.resolve() / "data"
    asked = [with_prompt(tasks[0], number, folder) for number in range(1, len(PROMPTS) + 1)]
    steps = options.steps or EPOCH
    seeds = options.seeds
    runs = {each: [usual_run(options, "mezo", each, "lm", seed, max_steps=steps) for seed in seeds] for each in asked}
    pool = Pool(options)
    every = [run for of_prompt in runs.values() for run in of_prompt]
    print(pool.page(every, "prompts", "Prompts", more=lambda: by_prompt(runs, steps, pool)))


if __name__ == "__main__":
    main()
