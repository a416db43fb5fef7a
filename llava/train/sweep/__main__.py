"""Search flags of train.py for the best validation: many runs, on Optuna.

    python -m llava.train.sweep --space "learning_rate=log:1e-6:1e-3,adapter_r=4|8|16" --budget 8 --metric accuracy \\
        --output runs/sweep -- FLAGS OF llava/train/train.py, --eval_data_path among them

Each trial is a run in OUTPUT/trials/NUMBER, with its command, log, journal, curve and report. Trials are drawn by TPE
and stopped by successive halving at the evaluations of `--eval_steps`; one whose loss has risen and stays there is
stopped as diverged. Stop it at any time, give the same command again, and it goes on, unfinished trials first. OUTPUT
then holds sweep.md with map.png and curves.png, best.json and best.txt: the best command line, which is printed too.
"""

from __future__ import annotations

import argparse
import json
import math
import signal
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NoReturn

from llava.errors import EXIT_SIGNAL, InputError, command
from llava.mezo.command_line import Parser
from llava.mezo.durable import write_durably
from llava.model.checkpoint_files import read_json
from llava.runs.run_folder import check_writable, held_alone
from llava.train.sweep.page import PAGE, Result, results, write_page
from llava.train.sweep.runner import Runner
from llava.train.sweep.search import STORAGE_FILE, Search, optuna
from llava.train.sweep.settings import METRICS, TRIALS, Sweep
from llava.train.sweep.space import FORMS
from llava.train.sweep.trial import command_line
from llava.utils import setup_logging

SWEEP_FILE = "sweep.json"
SHOWN = 8
"""New trials that a dry run shows."""


@command
def main(argv: list[str] | None = None) -> None:
    """Entry point, see the module's docstring."""
    setup_logging()
    options, flags = parse_options(sys.argv[1:] if argv is None else argv)
    optuna()
    sweep = Sweep.of(options.space, options.metric, flags, options.output)
    check_same(sweep)
    if options.dry_run:
        sys.stdout.write("\n".join(planned(sweep, options)) + "\n")
        return
    check_writable(options.output)
    with held_alone(options.output, "--output"):
        stopped, best = search_on(sweep, options)
    if best is not None:
        words = command_line(sweep.words(best.values, options.output / "best"))
        sys.stdout.write(f"trial {best.number}: {sweep.metric} {best.value:.4f} ({options.output / PAGE})\n{words}\n")
    if stopped:
        sys.stderr.write("interrupted; the same command goes on from here\n")
        sys.exit(EXIT_SIGNAL)


def search_on(sweep: Sweep, options: argparse.Namespace) -> tuple[bool, Result | None]:
    """Do trials until the budget is used up; returns whether a signal ended it, and the best trial so far."""
    write_durably(options.output / SWEEP_FILE, json.dumps(sweep.described(), indent=2) + "\n")
    deadline = time.monotonic() + 3600 * options.budget
    search = Search(sweep.space, options.output, sweep.greater_is_better, options.halving, options.seed)
    before = signal.signal(signal.SIGTERM, _interrupt)
    try:
        Runner(sweep, search, options.jobs, options.trials, options.keep_models).run(deadline)
        return False, write_page(sweep)
    except KeyboardInterrupt:
        return True, write_page(sweep)
    except InputError:
        write_page(sweep)
        raise
    finally:
        signal.signal(signal.SIGTERM, before)


def _interrupt(*signal_and_frame: Any) -> NoReturn:
    raise KeyboardInterrupt


def parse_options(argv: Sequence[str]) -> tuple[argparse.Namespace, list[str]]:
    """The sweep's own options, and the flags of train.py behind `--`. InputError for values out of range."""
    place = [*argv, "--"].index("--")
    options, flags = _parser().parse_args(list(argv[:place])), list(argv[place + 1 :])
    if not (math.isfinite(options.budget) and options.budget > 0):
        raise InputError(f"--budget {options.budget:g}: hours, above 0")
    for name in ("jobs", "trials"):
        given = getattr(options, name)
        if given is not None and given < 1:
            raise InputError(f"--{name} {given}: at least 1")
    if options.halving < 0 or options.halving == 1:
        raise InputError(f"--halving {options.halving}: 2 or more, or 0 to let all trials go on")
    if options.seed < 0:
        raise InputError(f"--seed {options.seed}: at least 0")
    if not flags:
        raise InputError("the flags of train.py are missing: give them behind --")
    options.output = options.output.absolute()
    return options, flags


def _parser() -> argparse.ArgumentParser:
    parser = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--space", required=True, help=f"NAME=VALUES,... or a JSON or YAML file; VALUES: {FORMS}")
    parser.add_argument(
        "--budget", type=float, required=True, metavar="HOURS", help="of this call; running trials go on later"
    )
    parser.add_argument(
        "--metric", choices=METRICS, required=True, help="accuracy: --eval_metric of the flags, or exact"
    )
    parser.add_argument(
        "--output", type=Path, default=Path("runs/sweep"), metavar="FOLDER", help="default: %(default)s"
    )
    parser.add_argument(
        "--jobs", type=int, default=1, help="trials at a time, on as many cards as there are (default 1)"
    )
    parser.add_argument("--trials", type=int, help="most in all, those of earlier calls included (default: no limit)")
    parser.add_argument(
        "--halving",
        type=int,
        default=3,
        metavar="K",
        help="one in K goes on at evaluations K, K^2, ... (default 3; 0: all do)",
    )
    parser.add_argument("--seed", type=int, default=0, help="of the values that are drawn (default 0)")
    parser.add_argument("--keep_models", action="store_true", help="keep the weights of trials that are over")
    parser.add_argument("--dry_run", action="store_true", help="list what would run, and start nothing")
    return parser


def check_same(sweep: Sweep) -> None:
    """`InputError` if the folder has a sweep with another space, other flags or another metric."""
    file = sweep.folder / SWEEP_FILE
    if not file.exists():
        return
    there, given = read_json(file), json.loads(json.dumps(sweep.described()))
    for name, value in given.items():
        if there.get(name) != value:
            raise InputError(
                f"--output {sweep.folder} has a sweep with another {name} ({there.get(name)}, now {value}): give that "
                "again, or another --output"
            )


def planned(sweep: Sweep, options: argparse.Namespace) -> list[str]:
    """Lines of a dry run: trials that would go on, and the next new ones as far as results do not change them."""
    lines = []
    if (sweep.folder / STORAGE_FILE).exists():
        for one in results(sweep):
            if one.outcome is None:
                lines.append(f"goes on, trial {one.number}: {command_line(sweep.words(one.values, one.folder))}")
        known = Search(sweep.space, sweep.folder, sweep.greater_is_better, options.halving, options.seed).study.trials
    else:
        known = []
    search = Search(sweep.space, None, sweep.greater_is_better, options.halving, options.seed)
    search.study.add_trials(known)
    left = SHOWN if options.trials is None else min(SHOWN, options.trials - len(known))
    for _ in range(left):
        drawn = search.draw()
        if drawn is None:
            break
        trial, values = drawn
        folder = sweep.folder / TRIALS / f"{trial.number:04d}"
        lines.append(f"new, trial {trial.number}: {command_line(sweep.words(values, folder))}")
    more = "" if options.trials is not None and options.trials - len(known) <= SHOWN else " and so on"
    return [*lines, f"until {options.budget:g} hours are over{more}; later values follow the results of earlier trials"]


if __name__ == "__main__":
    main()
