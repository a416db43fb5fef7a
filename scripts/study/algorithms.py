"""What estimators, rules and orders of the data are worth: each at its best rate, at equal sample-forwards.

    python scripts/study/algorithms.py --budget 60                     (60 minutes; the same command goes on)
    python scripts/study/algorithms.py --candidates mezo normalized --tasks figure

A sample-forward is one forward of one record: plain MeZO of the study has 5,000 steps x 4 records x 2 forwards, and
every candidate has as many. Rates are chosen on the validation set with seed 0, from the middle of a candidate's list
outwards; the best one is run with each seed and judged on the test set. AdamW has the study's 3,000 records, one or
four a step. `--budget` is in minutes: no run is started after it. Writes algorithms.md and, for each task, a picture of
accuracy against sample-forwards (the first seed's runs, at `--points` steps of their journals).
"""

from __future__ import annotations

import argparse
import json
import subprocess
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from statistics import mean
from typing import Any

from pictures import plot_progress
from planned_run import Run, usual_run
from run_pool import Pool
from settings import STEPS, Task, chosen_tasks, parsed, positive, study_parser

from llava.errors import command
from llava.train.zo.step_batches import Growth

BATCH = 4


SIZES = {"*norm*": 10, "*.mlp.*": 2, "*embed_tokens*": 0.5}
"""Of the noise, fitted to the tiny model by the loss on its charts (docs/reproduction.md)."""
GROWTH = "0:4,0.3:20"


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


PLAIN, SMALL = ["2.5e-5", "5e-5", "1e-4"], ["3e-7", "1e-6", "3e-6"]
OF_A_STEP = ["4e-4", "8e-4", "1.6e-3"]  # of rules and estimators whose step's length does not follow the loss
NORMALIZED = {"zo_rule": "normalized", "lr_scheduler_type": "linear"}
EVENLY = {"stratify_answers": "auto"}
CANDIDATES = {
    "adamw-1": Candidate("adamw", ["1e-4", "3e-4", "1e-3"], {"per_device_train_batch_size": 1}),
    "adamw-4": Candidate("adamw", ["1e-4", "3e-4", "1e-3"], {"per_device_train_batch_size": 4}),
    "mezo": Candidate("mezo", PLAIN),
    "spread": Candidate("mezo", PLAIN, EVENLY),
    "cosine": Candidate("mezo", PLAIN, {"lr_scheduler_type": "cosine"}),
    "normalized": Candidate("mezo", OF_A_STEP, NORMALIZED),
    "grown": Candidate("mezo", OF_A_STEP, NORMALIZED | {"zo_batch_growth": GROWTH}),
    "sized": Candidate("mezo", OF_A_STEP, NORMALIZED | {"zo_tensor_scales": "SIZES"}),
    "together": Candidate(
        "mezo", OF_A_STEP, NORMALIZED | EVENLY | {"zo_batch_growth": GROWTH, "zo_tensor_scales": "SIZES"}
    ),
    "rms": Candidate("mezo", PLAIN, {"zo_tensor_scales": "rms"}),
    "norms": Candidate("mezo", PLAIN, {"zo_tensor_scales": "norms"}),
    "momentum": Candidate("mezo", PLAIN, {"zo_rule": "momentum"}),
    "adam": Candidate("mezo", OF_A_STEP, {"zo_rule": "adam", "zo_noise": "rademacher"}),
    "adamu": Candidate("mezo", PLAIN, {"zo_rule": "adamu"}),
    "one_point": Candidate("mezo", SMALL, {"zo_estimator": "one_point"}, 1),
    "fzoo": Candidate(
        "mezo",
        OF_A_STEP,
        {"zo_estimator": "fzoo", "zo_num_directions": 8, "zo_noise": "rademacher", "zo_eps": "1e-4"},
        9,
    ),
    "per_example": Candidate("mezo", OF_A_STEP, {"zo_estimator": "per_example"}),
    "guided": Candidate("mezo", PLAIN, {"zo_estimator": "guided", "zo_num_directions": 4}, 6),
    "lowrank": Candidate("mezo", PLAIN, {"zo_estimator": "lowrank"}),
    # an anchor every fifth step, with two forwards of eight times the records
    "svrg": Candidate("mezo", PLAIN, {"zo_estimator": "svrg", "zo_anchor_batches": 8}, (4 * 4 + 2 * 8) / 5),
}


def searched(candidate: Candidate, task: Task, options: argparse.Namespace) -> dict[str, Run]:
    """By rate, the runs that are judged on the validation set, from the middle outwards."""
    middle = (len(candidate.rates) - 1) / 2
    order = sorted(candidate.rates, key=lambda rate: abs(candidate.rates.index(rate) - middle))
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
    """A candidate on a task.

    Attributes:
        tried: by rate, on the validation set.
    """

    name: str
    task: Task
    tried: Mapping[str, Run]

    @property
    def candidate(self) -> Candidate:
        """What its name stands for."""
        return CANDIDATES[self.name]

    def finals(self, pool: Pool, options: argparse.Namespace) -> list[Run]:
        """Those that are judged on the test set, with every seed, once the best rate is known."""
        rate = best_rate(self.tried, pool)
        if rate is None:
            return []
        return [run_of(self.candidate, self.task, rate, options, seed=seed) for seed in options.seeds]


def cases_of(options: argparse.Namespace) -> list[Case]:
    """Every candidate on every task."""
    return [
        Case(name, task, searched(CANDIDATES[name], task, options))
        for name in options.candidates
        for task in chosen_tasks(options)
    ]


@command
def main() -> None:
    """Run what is missing and fits the budget, then write the page."""
    parser = study_parser(__doc__)
    parser.add_argument("--budget", type=float, metavar="MINUTES", help="start no run after so long; default: all")
    parser.add_argument("--points", type=positive, default=5, help="of a curve, after the first")
    parser.add_argument("--candidates", nargs="+", choices=CANDIDATES, default=list(CANDIDATES))
    options = parsed(parser)
    options.sizes = (options.output / "sizes.json").resolve()
    options.sizes.parent.mkdir(parents=True, exist_ok=True)
    options.sizes.write_text(json.dumps(SIZES) + "\n", encoding="utf-8")
    deadline = None if options.budget is None else time.time() + 60 * options.budget
    pool, cases = Pool(options), cases_of(options)
    pool.do([run for case in cases for run in case.tried.values()], deadline)
    finals = [run for case in cases for run in case.finals(pool, options)]
    title = "Estimators, rules and orders"
    print(pool.page(finals, "algorithms", title, deadline, lambda: pictures(cases, pool, options)))


def pictures(cases: Sequence[Case], pool: Pool, options: argparse.Namespace) -> list[str]:
    """Lines that show a picture a task: how accuracy grows with the sample-forwards of each candidate."""
    lines = []
    for task in dict.fromkeys(case.task for case in cases):
        curves, best = {}, []
        for case in cases:
            finals = case.finals(pool, options) if case.task == task else []
            found = [accuracy for accuracy in map(pool.accuracy, finals) if accuracy is not None]
            if found and case.candidate.method == "adamw":
                best.append(100 * mean(found))
            elif finals and pool.accuracy(finals[0]) is not None:
                curves[case.name] = progress(case.candidate, finals[0], pool, options)
        if curves:
            picture = options.output / f"algorithms_{task.name}.png"
            plot_progress(curves, picture, f"{task.name}: accuracy on the test set", max(best, default=None))
            lines += [f"## {task.name}", "", f"![{task.name}]({picture.name})", ""]
    return lines


def progress(candidate: Candidate, run: Run, pool: Pool, options: argparse.Namespace) -> list[tuple[float, float]]:
    """Sample-forwards and accuracy in %, from the model before training to the end of a run."""
    folder, steps = pool.folder / run.name, int(run.flags["--max_steps"])
    answers = folder / "steps.jsonl"
    if not answers.with_suffix(".json").exists():
        words = pool.evaluation(run.task, "test", answers)
        words += ["--journal", str(folder / "mezo_journal"), "--all-steps", str(-(-steps // options.points))]
        subprocess.run(words, check=True)
    growth, batch = run.flags.get("--zo_batch_growth"), run.flags.get("--per_device_train_batch_size", BATCH)
    rows = [int(batch)] * steps if growth is None else Growth.parse(growth).rows(steps)
    found = json.loads(answers.with_suffix(".json").read_text(encoding="utf-8"))
    return [(sum(rows[: one["step"]]) * candidate.forwards, 100 * one["accuracy"]) for one in found]


if __name__ == "__main__":
    main()
