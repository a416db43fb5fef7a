"""Table 5 of the study: seven prompts for the yes / no task, zero-shot and after one epoch of MeZO.

    python scripts/study/prompts.py                                    (15 minutes on two CPU cores)
    python scripts/study/prompts.py --preset 0.5b --data data --seeds 0

writes prompts.md: accuracy of each prompt before and after 250 steps. Records differ in the human turn alone.
"""

from __future__ import annotations

import json
from pathlib import Path

from run_pool import run_all, usual_run
from settings import DRAWN_SIZES, Task, chosen_tasks, study_parser

from llava.data.loading import load_file
from llava.data.public_sets.br35h import PROMPTS
from llava.data.records import records_text
from llava.errors import command
from llava.eval.report import write
from llava.eval.runs import grouped, read_run

EPOCH = 250  # steps of batch 4 over 1000 records


def with_prompt(task: Task, number: int, folder: Path) -> Task:
    """The task asked with the study's prompt `number` (from 1), as records of its own over the same pictures."""
    asked = Task(f"{task.name}-prompt{number}", folder / f"{task.name}-prompt{number}", task.images)
    asked.folder.mkdir(parents=True, exist_ok=True)
    for split in DRAWN_SIZES:
        records = load_file(task.file(split))
        for record in records:
            record["conversations"][0]["value"] = PROMPTS[number - 1]
        asked.file(split).write_text(records_text(records), encoding="utf-8")
    return asked


@command
def main() -> None:
    """Run what is missing, then write the page."""
    options = study_parser(__doc__, tasks=1).parse_args()
    (task,) = chosen_tasks(options)
    folder = options.output.resolve() / "data"
    asked = {number: with_prompt(task, number, folder) for number in range(1, len(PROMPTS) + 1)}
    runs = [
        usual_run(options, "mezo", each, "lm", seed, max_steps=EPOCH)
        for seed in options.seeds
        for each in asked.values()
    ]
    folders = run_all(runs, options)
    groups = {group.task: group for group in grouped(map(read_run, folders))}
    lines = ["| prompt | zero-shot % | after 250 steps % | ± |", "|---|---|---|---|"]
    for number, each in asked.items():
        group = groups[each.name]
        before, after, spread = (
            group.mean("accuracy_before"),
            group.mean("accuracy_after"),
            group.spread("accuracy_after"),
        )
        figures = f"{100 * before:.1f} | {100 * after:.1f} | {100 * (spread or 0):.1f}"
        lines.append(f"| {number} `{json.dumps(PROMPTS[number - 1])}` | {figures} |")
    page = options.output / "prompts.md"
    text = write(folders, page, "Prompts") + "\n## By prompt\n\n" + "\n".join(lines) + "\n"
    page.write_text(text, encoding="utf-8")
    print(text)


if __name__ == "__main__":
    main()
