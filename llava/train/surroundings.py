"""What the loss is around the weights where a run would start, for `llava.train.advise`: measured and told."""

from __future__ import annotations

import logging
import math
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
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
SIZES = (0.25, 0.5, 1.0, 2.0, 4.0, 8.0, 16.0)
"""Of eps, as factors; each twice the one before."""


@dataclass(frozen=True)
class EpsSizes:
    """Sizes of eps, ascending, and how far slopes at each are from those at twice of it (root mean squares, a share).

    Small sizes drown in rounding, large ones in curvature. What rounding makes of a slope at eps goes with 1 / eps
    whatever the slope is, and slopes fall while a run trains: so the largest that curvature allows is the best.
    """

    sizes: tuple[float, ...]
    off: tuple[float, ...]

    @classmethod
    def of_slopes(cls, sizes: Sequence[float], slopes: Sequence[Sequence[float]]) -> EpsSizes:
        """Of the slopes along several directions, for each the slopes at these sizes, ascending by factors of 2."""
        off = []
        for k in range(len(sizes) - 1):
            size = sum(along[k + 1] ** 2 for along in slopes)
            apart = sum((along[k + 1] - along[k]) ** 2 for along in slopes)
            off.append(math.sqrt(apart / size) if size else math.nan)
        return cls(tuple(sizes[:-1]), tuple(off))

    def __str__(self) -> str:
        apart = [f"{size:.2g}: {100 * off:.1f}" for size, off in zip(self.sizes, self.off, strict=True)]
        return f"{', '.join(apart)} % off"

    def advice(self, eps: float) -> str:
        """What to give for --zo_eps, where this is given."""
        known = {size: off for size, off in zip(self.sizes, self.off, strict=True) if not math.isnan(off)}
        good = [size for size, off in known.items() if off <= TOLERABLE]
        if not good:
            return f"none is good, {min(known, key=known.__getitem__):.2g} is the least bad" if known else "not known"
        if eps in good:
            larger = f"; up to {max(good):.2g} is, and leaves more room for rounding as slopes fall"
            return f"{eps:g} is fine{larger if max(good) > eps else ''}"
        what = "small for the rounding of this model's losses" if eps < max(good) else "large for the curvature here"
        return f"{eps:g} is {what}: try {max(good):.2g}"


def measured(trainer: Any, directions: int, batches: int) -> tuple[Landscape, EpsSizes]:
    """Probes of a trainer's first batches, each batch once, along directions that no run takes."""
    trainer.create_optimizer()
    forwards, eps = trainer._forwards_of(trainer.model), trainer.zo.config.eps
    sizes, stream = [factor * eps for factor in SIZES], _endless(trainer)
    probes, slopes = [], []
    for number in range(directions):
        seed = probe_seed(trainer.zo.config.seed, number)
        taken = [next(stream) for _ in range(batches)]
        probes.append([probe_of(forwards.losses_at(probe_points(seed, eps), batch), eps) for batch in taken])
        losses = forwards.losses_at([Point.along(seed, sign * size) for size in sizes for sign in (1, -1)], taken[0])
        slopes.append([(a - b) / (2 * size) for a, b, size in zip(losses[::2], losses[1::2], sizes, strict=True)])
        logger.info("direction %d of %d: loss %.4f", number + 1, directions, mean(probe.loss for probe in probes[-1]))
    return Landscape(probes), EpsSizes.of_slopes(sizes, slopes)


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


def told_landscape(landscape: Landscape, of_eps: EpsSizes, args: TrainingArguments) -> str:
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
        f"slopes at eps and twice of it    {of_eps}",
        f"--zo_eps                         {of_eps.advice(args.zo_eps)}",
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
            landscape, of_eps = measured(trainer, directions, batches)
            record |= landscape_record(landscape, of_eps)
            record["noise_scale"] = noise_scale(landscape, args.per_device_train_batch_size)
            _say(told_landscape(landscape, of_eps, args))
        if count:
            if zo:
                trainer.mezo.release()  # weights may be stored elsewhere
            extremes = eigenvalues(trainer, count, batches)
            record["eigenvalues"] = asdict(extremes)
            _say(f"eigenvalues of the Hessian       {extremes} ({extremes.products} products)\n")
    return record


def _say(text: str) -> None:
    """At once, also into a file: what comes next takes minutes."""
    sys.stdout.write(text)
    sys.stdout.flush()


def _shown(found: Estimate) -> str:
    return f"{found.value:.3g} ± {found.error:.2g}"


def landscape_record(landscape: Landscape, of_eps: EpsSizes) -> dict[str, Any]:
    """What was found around the weights, for programs."""
    names = ("signal", "square", "noise", "trace", "trace_of_square", "best_rate", "effective_rank")
    estimates = {name: getattr(landscape, name) for name in names}
    return {
        "loss": landscape.loss,
        **{name: {"value": found.value, "error": found.error} for name, found in estimates.items()},
        "slopes_off": [
            {"eps": size, "share": None if math.isnan(off) else off}
            for size, off in zip(of_eps.sizes, of_eps.off, strict=True)
        ],
    }
