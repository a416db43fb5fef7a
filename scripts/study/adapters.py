"""What adapters and frugal optimizers are worth, each at its best rate of three, against AdamW on all weights.

    python scripts/study/adapters.py --budget 60                       (60 minutes; the same command goes on)
    python scripts/study/adapters.py --candidates adamw-none adamw-lora adamw-pissa --tasks figure
    python scripts/study/adapters.py --rates_on figure                 (rates of one task for all three)

Rates are the kind's default (`llava/train/flags/adapter_flags.py`) and a third and the triple of it; how they are
searched and judged is in candidates.py. `none` tunes all weights of the language model; so do adafactor, lomo, adalomo
and blocks (`--cycle_blocks`), while qlora is LoRA on a base of 4 bits. Writes adapters.md: for each
task the accuracies of all rates, of the best one on the test set, the share of the gain of AdamW on all weights, how
many weights are trained and how long a step takes, with `--jobs` runs at a time.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from statistics import mean

from candidates import BATCH, Candidate, Case, candidates_parser, cases_of, page
from run_pool import Pool
from settings import mean_and_spread, parsed

from llava.errors import command
from llava.train.flags.adapter_flags import DEFAULTS

FULL = {"adamw": ("1e-4", "3e-4", "1e-3"), "mezo": ("2.5e-5", "5e-5", "1e-4")}
"""Rates with all weights, as algorithms.py has them: runs of one pool are shared."""
BATCHES = {"per_device_train_batch_size": BATCH}
FRUGAL = {
    "adafactor": Candidate("adamw", ("1e-4", "3e-4", "1e-3"), {"optim": "adafactor", **BATCHES}),
    "lomo": Candidate("adamw", ("1e-2", "3e-2", "1e-1"), {"optim": "lomo", **BATCHES}),
    "adalomo": Candidate("adamw", ("1e-3", "3e-3", "1e-2"), {"optim": "adalomo", **BATCHES}),
    "blocks": Candidate("adamw", ("1e-4", "3e-4", "1e-3"), {"cycle_blocks": 25, **BATCHES}),
}
"""Backpropagation through all weights in less memory than AdamW takes."""


def candidates() -> dict[str, Candidate]:
    """By METHOD-KIND or the optimizer's name, all that can be compared."""
    found = {}
    for method in ("adamw", "mezo"):
        batch = BATCHES if method == "adamw" else {}
        found[f"{method}-none"] = Candidate(method, FULL[method], batch)
        for kind, default in DEFAULTS.items():
            usual = default.rate if method == "adamw" else default.zo_rate
            rates = [f"{factor * usual:.1g}" for factor in (1 / 3, 1, 3)]
            eps = {"zo_eps": f"{default.zo_eps:g}"} if method == "mezo" else {}
            found[f"{method}-{kind}"] = Candidate(method, rates, {"adapter": kind, **batch, **eps})
        lora = found[f"{method}-lora"]
        found[f"{method}-qlora"] = Candidate(method, lora.rates, {"bits": 4, **lora.flags})
    return found | FRUGAL


@command
def main() -> None:
    """Run what is missing and fits the budget, then write the page."""
    known = candidates()
    options = parsed(candidates_parser(__doc__, known))
    cases = cases_of({name: known[name] for name in options.candidates}, options)
    print(page(cases, options, "adapters", "Adapters", lambda pool: tables(cases, pool, options)))


def tables(cases: Sequence[Case], pool: Pool, options: argparse.Namespace) -> list[str]:
    """Lines of a table a task."""
    lines = []
    for task in dict.fromkeys(case.task for case in cases):
        here = [case for case in cases if case.task == task]
        before = 100 * pool.zero_shot_accuracy(task, "test")
        full = next((reached(case, pool, options) for case in here if case.name == "adamw-none"), [])
        lines += [f"## {task.name}", "", f"Before: {before:.1f} %.", ""]
        head = (
            "rate: accuracy on the validation set % | test set % | share of full AdamW's gain % | weights | ms a step"
        )
        lines += [f"| | {head} |"]
        lines += ["|---|---|---|---|---|---|"]
        for case in here:
            tried = ", ".join(f"{rate}: {outcome(case, rate, pool)}" for rate in case.candidate.rates)
            found = reached(case, pool, options)
            share = f"{100 * (mean(found) - before) / (mean(full) - before):.0f}" if found and full else ""
            judged = f"{mean_and_spread(found)} ({len(found)})" if found else ""
            lines.append(f"| {case.name} | {tried} | {judged} | {share} | {cost(case, pool, options)} |")
        lines.append("")
    return lines


def outcome(case: Case, rate: str, pool: Pool) -> str:
    """What came of a rate on the validation set."""
    run = case.tried[rate]
    accuracy = pool.accuracy(run)
    if accuracy is not None:
        return f"{100 * accuracy:.1f}"
    return "diverged" if pool.is_done(run) else "not run"


def cost(case: Case, pool: Pool, options: argparse.Namespace) -> str:
    """Cells: how many weights are trained, and milliseconds of a step, the mean of the seeds that have been run."""
    reports = [report for run in case.finals(pool, options) if (report := pool.report(run))]
    if not reports:
        return " | "
    milliseconds = 1000 * mean(report["seconds_per_step"] for report in reports)
    return f"{reports[0]['trainable_parameters']:,} | {milliseconds:.0f}"


def reached(case: Case, pool: Pool, options: argparse.Namespace) -> list[float]:
    """Accuracies on the test set, in %, of the seeds that have been run."""
    found = [pool.accuracy(run) for run in case.finals(pool, options)]
    return [100 * accuracy for accuracy in found if accuracy is not None]


if __name__ == "__main__":
    main()
