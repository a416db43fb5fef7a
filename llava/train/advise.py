"""A learning rate and an eps before a run, from forwards alone.

    python -m llava.train.advise FLAGS --trainer_mode zo [--directions 25 --batches 8 --advice advice.json]

FLAGS are those of `llava.train.train`, whose model, data and first batches are measured as a run would find them;
nothing is trained or saved. What is measured: `llava/mezo/curvature.py`, and with `--eigenvalues K` the largest
eigenvalues of the Hessian, by backpropagation. What is made of it, and how far it can be relied on: docs/tuning.md.
Takes as long as directions x batches x 1.5 steps of a run with one direction.
"""

from __future__ import annotations

import argparse
import json
import logging
import math
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from itertools import islice
from pathlib import Path
from statistics import mean
from typing import Any

import transformers

from llava.errors import InputError, command
from llava.mezo.algorithms.interface import Point
from llava.mezo.curvature import Estimate, Landscape, probe_of, probe_points, probe_seed
from llava.mezo.durable import write_durably
from llava.model.own_settings import read_config
from llava.train.flags.from_checkpoint import take_from_checkpoint
from llava.train.flags.parsing import parse_arguments
from llava.train.flags.preflight import check_paths, check_records
from llava.train.hessian import Hessian
from llava.train.lanczos import Extremes, extreme_eigenvalues
from llava.train.train import build, make_trainer
from llava.train.zo.settings import Settings
from llava.utils import setup_logging

logger = logging.getLogger("llava.train.advise")

OWN_LOSS = 0.014
"""Nats by which a step at a good rate lowers the loss of its own batch beyond what it lowers that of others: the rate
is this over |g_i|^2 - |g|^2. From the best rates of three drawn tasks, docs/tuning.md."""
TOLERABLE = 0.1
"""Difference between slopes at two sizes of eps, as a share of their size."""


@dataclass(frozen=True)
class Steadiness:
    """How far slopes at other sizes of eps are from those at eps, as shares of these (root mean squares)."""

    at_half: float
    at_twice: float


def learning_rate(landscape: Landscape) -> Estimate | None:
    """The rate of plain MeZO with batches as they were measured; None where their noise could not be."""
    noise = landscape.noise
    if not noise.is_positive:
        return None
    rate = OWN_LOSS / noise.value
    return Estimate(rate, rate * noise.error / noise.value)


def eps_advice(eps: float, found: Steadiness) -> str:
    """Whether slopes depend on eps, and what to do then."""
    if max(found.at_half, found.at_twice) <= TOLERABLE:
        return f"{eps:g} is fine"
    if found.at_half > found.at_twice:
        return f"{eps:g} is small for the rounding of this model's losses: try {2 * eps:g} to {4 * eps:g}"
    return f"{eps:g} is large for the curvature here: try {eps / 4:g} to {eps / 2:g}"


def measured(trainer: Any, directions: int, batches: int) -> tuple[Landscape, Steadiness]:
    """Probes of a trainer's first batches, each batch once, along directions that no run takes."""
    trainer.create_optimizer()
    forwards, eps = trainer._forwards_of(trainer.model), trainer.zo.config.eps
    stream, probes, apart = _endless(trainer), [], []
    for number in range(directions):
        seed = probe_seed(trainer.zo.config.seed, number)
        taken = [next(stream) for _ in range(batches)]
        probes.append([probe_of(forwards.losses_at(probe_points(seed, eps), batch), eps) for batch in taken])
        slopes = []
        for size in (eps / 2, 2 * eps):
            plus, minus = forwards.losses_at([Point.along(seed, size), Point.along(seed, -size)], taken[0])
            slopes.append((plus - minus) / (2 * size))
        apart.append([slope - probes[-1][0].slope for slope in slopes])
        logger.info("direction %d of %d: loss %.4f", number + 1, directions, mean(probe.loss for probe in probes[-1]))
    size = math.sqrt(mean(along[0].slope ** 2 for along in probes)) or math.nan
    half, twice = (math.sqrt(mean(one[k] ** 2 for one in apart)) / size for k in (0, 1))
    return Landscape(probes), Steadiness(half, twice)


def eigenvalues(trainer: Any, count: int, batches: int) -> Extremes:
    """Of the Hessian of a trainer's first batches, after which its model is in float32."""
    hessian = Hessian.of_run(trainer, list(islice(_endless(trainer), batches)))
    return extreme_eigenvalues(hessian.times, hessian.random(trainer.args.seed), count)


def _endless(trainer: Any) -> Iterator[Any]:
    while True:
        yield from trainer.get_train_dataloader()


def text(landscape: Landscape, steadiness: Steadiness, args: Any) -> str:
    """What was found, and the advice."""
    rate, (low, high) = learning_rate(landscape), landscape.largest_eigenvalue
    share = f"{100 * landscape.share.value:.0f} % of it is signal"
    curved = landscape.trace.is_positive and landscape.trace_of_square.is_positive
    rank = f"; effective rank {landscape.effective_rank.value:.2g}, largest eigenvalue {low:.2g} to {high:.2g}"
    lines = [
        f"loss                             {landscape.loss:.4f}",
        f"what a step gains by, |g|^2      {_shown(landscape.signal)}",
        f"what it follows, |g_batch|^2     {_shown(landscape.square)}: {share}",
        f"trace of the Hessian             {_shown(landscape.trace)}{rank if curved else '; no more can be told'}",
        f"slopes at half and twice eps     {100 * steadiness.at_half:.1f} % and {100 * steadiness.at_twice:.1f} % off",
        "",
    ]
    if rate is None:
        lines.append("--learning_rate: the noise of a batch could not be measured; give more --directions or --batches")
    else:
        lines.append(f"--learning_rate {rate.value:.1g} (from {rate.value / 2:.1g} to {2 * rate.value:.1g})")
    lines.append(f"--zo_eps: {eps_advice(args.zo_eps, steadiness)}")
    lines.append("The rate is for --zo_rule sgd at a constant rate, and goes with the batch. Try half and twice of it.")
    return "\n".join(lines) + "\n"


def _shown(found: Estimate) -> str:
    return f"{found.value:.3g} ± {found.error:.2g}"


def record(landscape: Landscape, steadiness: Steadiness, options: argparse.Namespace, args: Any) -> dict[str, Any]:
    """All of it for programs."""
    rate = learning_rate(landscape)
    names = ("signal", "square", "noise", "trace", "trace_of_square", "best_rate", "effective_rank")
    estimates = {name: getattr(landscape, name) for name in names} | {"learning_rate": rate}
    return {
        "directions": options.directions,
        "batches": options.batches,
        "records_of_a_batch": args.per_device_train_batch_size,
        "zo_eps": args.zo_eps,
        "loss": landscape.loss,
        **{name: found and {"value": found.value, "error": found.error} for name, found in estimates.items()},
        "slopes_off": {"half_eps": steadiness.at_half, "twice_eps": steadiness.at_twice},
    }


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        "python -m llava.train.advise", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
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
    return options, flags


@command
def main(argv: Sequence[str] | None = None) -> None:
    """Entry point, see the module's docstring."""
    setup_logging()
    options, flags = _options(argv)
    model_args, data_args, training_args = parse_arguments(flags)
    if training_args.trainer_mode != "zo":
        raise InputError(
            f"--trainer_mode {training_args.trainer_mode}: advice is for zo; what backpropagation wants is not told by "
            "a few steps' curvature (docs/tuning.md)"
        )
    check_paths(model_args, data_args, training_args)
    take_from_checkpoint(model_args, data_args, read_config(model_args.model_name_or_path))
    parts = check_records(data_args, training_args, training_args.data_processes)
    if Settings.of(training_args).planned_rows(training_args) is not None:
        raise InputError("--zo_batch_growth, --zo_anchor_batches: give the batch to advise on instead")
    moved = training_args.zo_offload != "none" or training_args.zo_shard != "none"
    if options.eigenvalues and (training_args.bits == 8 or moved):
        raise InputError(
            "--eigenvalues excludes --bits 8, whose loss has steps, --zo_offload and --zo_shard: leave it or them out"
        )
    transformers.set_seed(training_args.seed)
    model, tokenizer = build(model_args, data_args, training_args)
    begin = time.perf_counter()
    with tempfile.TemporaryDirectory() as training_args.output_dir:  # a trainer makes the folder
        trainer = make_trainer(model, tokenizer, model_args, data_args, training_args, parts)
        landscape, steadiness = measured(trainer, options.directions, options.batches)
        seconds = time.perf_counter() - begin
        extremes = eigenvalues(trainer, options.eigenvalues, options.batches) if options.eigenvalues else None
    forwards = options.directions * (3 * options.batches + 4)
    sys.stdout.write(f"{forwards} forwards of {training_args.per_device_train_batch_size} records, ")
    sys.stdout.write(f"{seconds:.0f} s\n\n{text(landscape, steadiness, training_args)}")
    if extremes is not None:
        sys.stdout.write(f"Eigenvalues of the Hessian: {extremes} ({extremes.products} products)\n")
    if options.advice is not None:
        found = record(landscape, steadiness, options, training_args)
        found["eigenvalues"] = extremes and asdict(extremes)
        write_durably(options.advice, (json.dumps(found, indent=2) + "\n").encode())


if __name__ == "__main__":
    main()
