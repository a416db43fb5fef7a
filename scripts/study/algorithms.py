"""What estimators, rules and orders of the data are worth: each at its best rate, at equal sample-forwards.

    python scripts/study/algorithms.py --budget 60                     (60 minutes; the same command goes on)
    python scripts/study/algorithms.py --candidates mezo normalized --tasks figure

How they are searched and judged is in candidates.py. `--budget` is in minutes: no run is started after it. Writes
algorithms.md and, for each task, a picture of accuracy against sample-forwards (the mean over the seeds, at `--points`
steps of their journals).
"""

from __future__ import annotations

import argparse
import json
import subprocess
from collections.abc import Sequence
from statistics import mean

from candidates import BATCH, Candidate, Case, candidates_parser, cases_of, page
from pictures import plot_progress
from planned_run import Run
from run_pool import Pool
from settings import parsed, positive

from llava.errors import command
from llava.train.zo.step_batches import Growth

SIZES = {"*norm*": 10, "*.mlp.*": 2, "*embed_tokens*": 0.5}
"""Of the noise, fitted to the tiny model by the loss on its charts (docs/reproduction.md)."""
GROWTH = "0:4,0.3:20"
PLAIN, SMALL = ["2.5e-5", "5e-5", "1e-4"], ["3e-7", "1e-6", "3e-6"]
OF_A_STEP = ["4e-4", "8e-4", "1.6e-3"]  # of rules and estimators whose step's length does not follow the loss
NORMALIZED = {"zo_rule": "normalized", "lr_scheduler_type": "linear"}
EVENLY = {"stratify_answers": "auto"}


def fzoo(directions: int, rates: Sequence[str]) -> Candidate:
    """The estimator `fzoo` with so many directions: a step has one forward at the weights, and one a direction."""
    flags = {"zo_estimator": "fzoo", "zo_num_directions": directions, "zo_noise": "rademacher", "zo_eps": "1e-4"}
    return Candidate("mezo", rates, flags, directions + 1)


CANDIDATES = {
    "adamw-1": Candidate("adamw", ["1e-4", "3e-4", "1e-3"], {"per_device_train_batch_size": 1}),
    "adamw-4": Candidate("adamw", ["1e-4", "3e-4", "1e-3"], {"per_device_train_batch_size": 4}),
    "mezo": Candidate("mezo", PLAIN),
    "study": Candidate("mezo", ["5e-5"]),  # the rate of methods_and_parts.py, at which no seed diverges
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
    "fzoo": fzoo(8, ["1.6e-3", "3.2e-3", "6.4e-3"]),
    "fzoo16": fzoo(16, ["3.2e-3", "6.4e-3", "1.28e-2"]),
    "per_example": Candidate("mezo", OF_A_STEP, {"zo_estimator": "per_example"}),
    "guided": Candidate("mezo", PLAIN, {"zo_estimator": "guided", "zo_num_directions": 4}, 6),
    "lowrank": Candidate("mezo", PLAIN, {"zo_estimator": "lowrank"}),
    # an anchor every fifth step, with two forwards of eight times the records
    "svrg": Candidate("mezo", PLAIN, {"zo_estimator": "svrg", "zo_anchor_batches": 8}, (4 * 4 + 2 * 8) / 5),
}


@command
def main() -> None:
    """Run what is missing and fits the budget, then write the page."""
    parser = candidates_parser(__doc__, CANDIDATES)
    parser.add_argument("--points", type=positive, default=5, help="of a curve, after the first")
    options = parsed(parser)
    options.sizes = (options.output / "sizes.json").resolve()
    options.sizes.parent.mkdir(parents=True, exist_ok=True)
    options.sizes.write_text(json.dumps(SIZES) + "\n", encoding="utf-8")
    cases = cases_of({name: CANDIDATES[name] for name in options.candidates}, options)
    title = "Estimators, rules and orders"
    print(page(cases, options, "algorithms", title, lambda pool: pictures(cases, pool, options)))


def pictures(cases: Sequence[Case], pool: Pool, options: argparse.Namespace) -> list[str]:
    """Lines that show a picture a task: how accuracy grows with the sample-forwards of each candidate."""
    lines = []
    for task in dict.fromkeys(case.task for case in cases):
        curves, best = {}, []
        for case in cases:
            runs = case.finals(pool, options) if case.task == task else []
            found = {run.name: accuracy for run in runs if (accuracy := pool.accuracy(run)) is not None}
            if found and case.candidate.method == "adamw":
                best.append(100 * mean(found.values()))
            elif found:
                of_seeds = [progress(case.candidate, run, pool, options) for run in runs if run.name in found]
                curves[case.name] = averaged(of_seeds)
        if curves:
            picture = options.output / f"algorithms_{task.name}.png"
            plot_progress(curves, picture, f"{task.name}: accuracy on the test set", max(best, default=None))
            lines += [f"## {task.name}", "", f"![{task.name}]({picture.name})", ""]
    return lines


def averaged(curves: Sequence[Sequence[tuple[float, float]]]) -> list[tuple[float, float]]:
    """The mean of curves whose points have the same places."""
    return [(points[0][0], mean(value for _, value in points)) for points in zip(*curves, strict=True)]


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
