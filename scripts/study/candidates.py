"""Candidates of a comparison: each gets as much data as the others, and its best rate of a few.

A sample-forward is one forward of one record: plain MeZO of the study has 5,000 steps x 4 records x 2 forwards, and
every candidate has as many; AdamW has the study's 3,000 records, one or four a step. Rates are chosen on the validation
set with seed 0, from the middle of a candidate's list outwards, on each task or for all of them on one (`--rates_on`);
the best one is run with each seed and judged on the test set.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from planned_run import Run, usual_run
from run_pool import Pool
from settings import STEPS, Task, add_budget, chosen_tasks, deadline_of, from_middle, study_parser

from llava.errors import InputError
from llava.train.zo.step_batches import Growth

BATCH = 4


@dataclass(frozen=True)
class Candidate:
    """A way to train.

    Attributes:
        rates: learning rates that are tried, the likeliest in the middle.
        flags: of train.py.
        forwards: of a record in a step; AdamW's backward passes do not count.
    """

    method: str
    rates: Sequence[str]
    flags: Mapping[str, Any] = field(default_factory=dict)
    forwards: float = 2

    def steps(self, study_steps: int) -> int:
        """As many as the budget of `study_steps` plain ones allows."""
        batch = self.flags.get("per_device_train_batch_size", BATCH)
        if self.method == "adamw":
            return STEPS["adamw"] // batch
        records = study_steps * BATCH * 2 / self.forwards
        if "zo_batch_growth" not in self.flags:
            return int(records / batch)
        stages = Growth.parse(self.flags["zo_batch_growth"]).stages
        ends = [*(share for share, _ in stages[1:]), 1.0]
        return int(sum((end - share) * records / rows for end, (share, rows) in zip(ends, stages, strict=True)))


def searched(candidate: Candidate, task: Task, options: argparse.Namespace) -> dict[str, Run]:
    """By rate, the runs that are judged on the validation set, from the middle outwards."""
    order = sorted(candidate.rates, key=lambda rate: from_middle(rate, candidate.rates))
    return {rate: run_of(candidate, task, rate, options, split="val") for rate in order}


def run_of(candidate: Candidate, task: Task, rate: str, options: argparse.Namespace, **more: Any) -> Run:
    """A run of a candidate at a rate."""
    steps = candidate.steps(options.steps or STEPS["mezo"])
    changes = {"learning_rate": rate, "max_steps": steps, **candidate.flags}
    if changes.get("zo_tensor_scales") == "SIZES":
        changes["zo_tensor_scales"] = str(options.sizes)
    return usual_run(options, candidate.method, task, "lm", **more, **changes)


def best_rate(runs: Mapping[str, Run], pool: Pool) -> str | None:
    """The rate with the best accuracy on the validation set; None until all have been tried, or if all diverged."""
    if not all(pool.is_done(run) for run in runs.values()):
        return None
    found = {rate: pool.accuracy(run) for rate, run in runs.items()}
    reached = {rate: accuracy for rate, accuracy in found.items() if accuracy is not None}
    return max(reached, key=reached.__getitem__) if reached else None


@dataclass(frozen=True)
class Case:
    """A candidate, by its name, on a task.

    Attributes:
        tried: by rate, on the validation set of this task or of that whose rates hold for all.
    """

    name: str
    candidate: Candidate
    task: Task
    tried: Mapping[str, Run]

    def finals(self, pool: Pool, options: argparse.Namespace) -> list[Run]:
        """Those that are judged on the test set, with every seed, once the best rate is known."""
        rate = best_rate(self.tried, pool)
        if rate is None:
            return []
        return [run_of(self.candidate, self.task, rate, options, seed=seed) for seed in options.seeds]


def cases_of(candidates: Mapping[str, Candidate], options: argparse.Namespace) -> list[Case]:
    """Every candidate on every task.

    Raises:
        InputError: `--rates_on` names a task that is not among them.
    """
    tasks = {task.name: task for task in chosen_tasks(options)}
    if options.rates_on is not None and options.rates_on not in tasks:
        raise InputError(f"--rates_on {options.rates_on}: of the tasks of this call ({', '.join(tasks)})")
    return [
        Case(name, candidate, task, searched(candidate, tasks.get(options.rates_on, task), options))
        for name, candidate in candidates.items()
        for task in tasks.values()
    ]


def candidates_parser(description: str | None, candidates: Mapping[str, Candidate]) -> argparse.ArgumentParser:
    """The flags of all experiments, with those of a search among candidates."""
    parser = study_parser(description)
    add_budget(parser)
    parser.add_argument("--candidates", nargs="+", choices=candidates, default=list(candidates))
    parser.add_argument("--rates_on", metavar="TASK", help="choose rates on this task alone; default: on each its own")
    return parser


def page(
    cases: Sequence[Case], options: argparse.Namespace, name: str, title: str, more: Callable[[Pool], Sequence[str]]
) -> str:
    """Search the rates, judge the best of each case, and write OUTPUT/name.md; `more` are lines at its end."""
    deadline = deadline_of(options)
    pool = Pool(options)
    pool.do([run for case in cases for run in case.tried.values()], deadline)
    finals = [run for case in cases for run in case.finals(pool, options)]
    return pool.page(finals, name, title, deadline, lambda: more(pool))
