"""A learning rate, and with MeZO an eps and a batch, before a run.

    python -m llava.train.advise FLAGS [--directions 25 --batches 8 --advice advice.json]

FLAGS are those of `llava.train.train`, whose model and data are measured as a run would find them; nothing is saved.
The rate is that of a short run which grows it until it breaks (`llava/train/range_test.py`), at most 360 steps. With
`--trainer_mode zo` the loss around the weights is measured before, as `llava/mezo/curvature.py` has it, which takes as
long as directions x batches x 1.5 steps; with `--eigenvalues K` the largest eigenvalues of the Hessian are, by
backpropagation. How far all of it can be relied on: docs/tuning.md.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

from llava.errors import InputError, command
from llava.mezo.command_line import Parser
from llava.mezo.durable import write_durably
from llava.model.own_settings import read_config
from llava.runs.plots import plot_range_test
from llava.train.flags.from_checkpoint import take_from_checkpoint
from llava.train.flags.learning_rate import refuse_untested, usual_rate
from llava.train.flags.parsing import parse_arguments
from llava.train.flags.preflight import check_paths, check_records
from llava.train.memory import free_memory
from llava.train.objectives import chooses
from llava.train.range_test import RangeTest, run_range_test
from llava.train.surroundings import around
from llava.train.train import trainer_of
from llava.utils import setup_logging


def told_rate(found: RangeTest) -> str:
    """What a range test says."""
    if found.rate is None:
        return (
            f"--learning_rate                  not found: the loss, {found.start:.4f} at the start, did not break "
            "after it was well. Give another --learning_rate to look around\n"
        )
    return (
        f"--learning_rate                  {found.rate:.1g}, from {found.rate / 2:.1g} to {2 * found.rate:.1g}: a rate "
        f"that grows breaks a run at {found.breaking_rate:.2g}\n"
    )


def _parser() -> argparse.ArgumentParser:
    parser = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--directions", type=int, default=25, help="random directions, at least 3")
    parser.add_argument("--batches", type=int, default=8, help="batches measured along each, at least 2")
    parser.add_argument(
        "--eigenvalues", type=int, default=0, metavar="K", help="also the K largest of the Hessian: by backpropagation"
    )
    parser.add_argument("--advice", type=Path, metavar="FILE", help="also write what was found to this JSON file")
    return parser


def _options(argv: Sequence[str] | None) -> tuple[argparse.Namespace, list[str]]:
    options, flags = _parser().parse_known_args(argv)
    for name, least in (("directions", 3), ("batches", 2), ("eigenvalues", 0)):
        if getattr(options, name) < least:
            raise InputError(f"--{name} {getattr(options, name)} must be at least {least}")
    if options.advice is not None and (options.advice.is_dir() or not options.advice.parent.is_dir()):
        raise InputError(f"--advice {options.advice}: give a file in a folder that exists")
    return options, flags


@command
def main(argv: Sequence[str] | None = None) -> None:
    """Entry point, see the module's docstring."""
    setup_logging()
    options, flags = _options(argv)
    model_args, data_args, training_args = parse_arguments(flags)
    refuse_untested(training_args, "advice")
    if "learning_rate" not in model_args.given:
        training_args.learning_rate = usual_rate(training_args)
    check_paths(model_args, data_args, training_args)
    take_from_checkpoint(model_args, data_args, read_config(model_args.model_name_or_path))
    parts = check_records(data_args, training_args, training_args.data_processes)
    moved = training_args.zo_offload != "none" or training_args.zo_shard != "none"
    if options.eigenvalues and (training_args.bits == 8 or moved or chooses(training_args)):
        raise InputError(
            "--eigenvalues excludes --zo_objective classification (they are of the loss among all tokens), --bits 8, "
            "whose loss has steps, --zo_offload and --zo_shard: leave it or them out"
        )
    make = partial(trainer_of, model_args, data_args, parts)
    begin = time.perf_counter()
    record: dict[str, Any] = {
        "records_of_a_batch": training_args.per_device_train_batch_size,
        "zo_eps": training_args.zo_eps,
        "directions": options.directions,
        "batches": options.batches,
    }
    record |= around(make, training_args, options.directions, options.batches, options.eigenvalues)
    free_memory()
    found = run_range_test(make, training_args, str(model_args.version))
    record["range_test"] = found.report()
    sys.stdout.write(f"{told_rate(found)}({time.perf_counter() - begin:.0f} s)\n")
    if options.advice is not None:
        plot_range_test(record["range_test"], options.advice.with_suffix(".png"))
        write_durably(options.advice, (json.dumps(record, indent=2) + "\n").encode())


if __name__ == "__main__":
    main()
