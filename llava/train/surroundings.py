"""What the loss is around the weights where a run would start, for `llava.train.advise`: measured and told."""

from __future__ import annotations

import logging
import math
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from itertools import islice
from statistics import mean
from typing import Any

from llava.mezo.algorithms.interface import Point
from llava.mezo.curvature import Estimate, Landscape, probe_of, probe_points, probe_seed
from llava.train.flags.arguments import TrainingArguments
from llava.train.hessian import Hessian
from llava.train.lanczos import Extremes, extreme_eigenvalues
from llava.train.range_test import trial_settings

logger = logging.getLogger(__name__)

TOLERABLE = 0.1
"""Difference between slopes at two sizes of eps, as a share of their size."""


@dataclass(frozen=True)
class Steadiness:
    """How far slopes at other sizes of eps are from those at eps, as shares of these (root mean squares)."""

    at_half: float
    at_twice: float


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


def noise_scale(landscape: Landscape, rows: int) -> float | None:
    """Records of a batch whose noise is as large as the signal: fewer waste steps, more waste forwards.

    The simple noise scale of McCandlish et al. 2018 (section 2.2), by squares along random directions; None where the
    signal is within its error.

    Args:
        rows: of the batches that were measured.
    """
    if not landscape.signal.is_positive:
        return None
    return rows * max(0.0, landscape.noise.value) / landscape.signal.value


def told_landscape(landscape: Landscape, steadiness: Steadiness, args: TrainingArguments) -> str:
    """What was found around the weights, and what it says of the batch and of eps."""
    rows = args.per_device_train_batch_size
    scale = noise_scale(landscape, rows)
    batch = "not known: the signal is within its error" if scale is None else f"{max(1.0, scale):.2g}"
    low, high = landscape.largest_eigenvalue
    share = f"{100 * landscape.share.value:.0f} % of it is signal"
    curved = landscape.trace.is_positive and landscape.trace_of_square.is_positive
    rank = f"; effective rank {landscape.effective_rank.value:.2g}, largest eigenvalue {low:.2g} to {high:.2g}"
    lines = [
        f"loss                             {landscape.loss:.4f}",
        f"what a step gains by, |g|^2      {_shown(landscape.signal)}",
        f"what it follows, |g_batch|^2     {_shown(landscape.square)}: {share}",
        f"trace of the Hessian             {_shown(landscape.trace)}{rank if curved else '; no more can be told'}",
        f"slopes at half and twice eps     {100 * steadiness.at_half:.1f} % and {100 * steadiness.at_twice:.1f} % off",
        f"--zo_eps                         {eps_advice(args.zo_eps, steadiness)}",
        f"records a step, noise as signal  {batch} (measured with {rows})",
    ]
    return "\n".join(lines) + "\n"


def around(
    make: Callable[[TrainingArguments], Any], args: TrainingArguments, directions: int, batches: int, count: int
) -> dict[str, Any]:
    """Measures around the weights what there is to be, says it, and returns it for programs.

    Args:
        make: gives a run's trainer, whose weights are lost.
        args: of the run. In regular mode there are eigenvalues alone.
        directions: random ones, at least 3.
        batches: measured along each, at least 2; the Hessian is of as many.
        count: of the largest eigenvalues; 0: none.
    """
    zo = args.trainer_mode == "zo"
    record: dict[str, Any] = {}
    if not zo and not count:
        return record
    with tempfile.TemporaryDirectory() as folder:
        trainer = make(trial_settings(args, folder))
        if zo:
            landscape, steadiness = measured(trainer, directions, batches)
            record |= landscape_record(landscape, steadiness)
            record["noise_scale"] = noise_scale(landscape, args.per_device_train_batch_size)
            sys.stdout.write(told_landscape(landscape, steadiness, args))
        if count:
            if zo:
                trainer.mezo.release()  # weights may be stored elsewhere
            extremes = eigenvalues(trainer, count, batches)
            record["eigenvalues"] = asdict(extremes)
            sys.stdout.write(f"eigenvalues of the Hessian       {extremes} ({extremes.products} products)\n")
    return record


def _shown(found: Estimate) -> str:
    return f"{found.value:.3g} ± {found.error:.2g}"


def landscape_record(landscape: Landscape, steadiness: Steadiness) -> dict[str, Any]:
    """What was found around the weights, for programs."""
    names = ("signal", "square", "noise", "trace", "trace_of_square", "best_rate", "effective_rank")
    estimates = {name: getattr(landscape, name) for name in names}
    return {
        "loss": landscape.loss,
        **{name: {"value": found.value, "error": found.error} for name, found in estimates.items()},
        "slopes_off": {"half_eps": steadiness.at_half, "twice_eps": steadiness.at_twice},
    }
