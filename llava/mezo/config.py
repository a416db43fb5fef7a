"""Settings of the zeroth-order optimizer: every field with its meaning, unit, range and check."""

from __future__ import annotations

import math
from dataclasses import dataclass

from llava.mezo.algorithms.choice import ESTIMATORS, RULES
from llava.mezo.algorithms.course import Course
from llava.mezo.noise import DISTRIBUTIONS
from llava.mezo.ranks import PARALLEL
from llava.mezo.tensor_sizes import KINDS, read_patterns

NOISES = tuple(DISTRIBUTIONS)
KERNEL_DEVICES: dict[str, tuple[str, ...] | None] = {
    "auto": None,
    "reference": ("cpu",),
    "torch": None,
    "numba": ("cpu",),
    "triton": ("cuda",),
}
"""Types of device that each kernel runs on; None: all."""
KERNELS = tuple(KERNEL_DEVICES)
STORAGES = ("native", "fixed16", "fp32")
LARGEST_SEED = 2**64 - 1
MOST_DIRECTIONS, LARGEST_WINDOW, LARGEST_RANK = 4096, 256, 64


@dataclass(frozen=True)
class MeZOConfig:
    """How one step is taken; by default that of MeZO (Malladi et al. 2023, Algorithm 1).

    Learning rate and weight decay are not here: they belong to the optimizer's parameter groups.
    A field outside its range raises ValueError with the value given and what is allowed.
    """

    eps: float = 1e-3
    """How far from the weights losses are taken along a direction, in units of the weights; > 0."""

    num_directions: int = 1
    """Random directions per step; every one costs two forwards with "spsa", else one; 1 to 4096."""

    estimator: str = "spsa"
    """How losses become projected gradients: "spsa" or another of `algorithms/`."""

    rule: str = "sgd"
    """How these become a step: "sgd" or another of `algorithms/`."""

    momentum: float = 0.9
    """Weight of a step in "momentum", "adam" and "adamu" against that of the step after it, from 0 to below 1."""

    rms_decay: float = 0.99
    """Share that the mean square of "normalized" keeps of what it was a step ago, from 0 to below 1."""

    clip: float = 0.0
    """Projected gradients are cut off at this size before the rule sees them (QZO, Shang et al. 2025); 0: not."""

    window: int = 20
    """Steps that "momentum", "adam" and "adamu" look back, and whose noise is computed again; 1 to 256."""

    anchor_steps: int = 5
    """Steps from one anchor of "svrg" to the next, whose noise is computed again; 1 to 256."""

    rank: int = 4
    """Of the directions of "lowrank"; 1 to 64."""

    basis_steps: int = 50
    """Steps for which "lowrank" keeps one of the two factors; at least 1."""

    tensor_scales: str = "none"
    """How large the noise of each weight is: "none", "norms", "rms" or a JSON file, see `tensor_sizes.py`."""

    noise: str = "gaussian"
    """Distribution of a direction's elements: "gaussian" (variance 1) or "rademacher" (-1 or +1)."""

    seed: int = 0
    """Seed of the run, 0 to 2**64 - 1. 0 is a seed like any other."""

    kernel: str = "auto"
    """Who computes the noise, with equal results: "reference" (NumPy), "torch", "numba", "triton" (CUDA), or "auto"."""

    storage: str = "native"
    """How 16-bit weights are stored while they are trained: "native", "fixed16" or "fp32", see `weights.py`."""

    parallel: str = "data"
    """What several processes share out: records ("data"), the losses of a batch ("directions"), or "both"."""

    check_ranks_steps: int = 100
    """Several processes compare some of their weights every so many steps; 0: never."""

    max_bad_steps: int = 3
    """Consecutive steps with a loss that is not finite after which a trainer stops; at least 1."""

    def __post_init__(self) -> None:
        _check_number("eps", self.eps)
        if not (math.isfinite(self.eps) and self.eps > 0):
            raise ValueError(f"eps is {self.eps}; it must be a finite number above 0 (usual: 1e-3)")
        _check_integer("num_directions", self.num_directions, 1, MOST_DIRECTIONS)
        _check_integer("seed", self.seed, 0, LARGEST_SEED)
        _check_integer("max_bad_steps", self.max_bad_steps, 1, None)
        _check_choice("noise", self.noise, NOISES)
        _check_choice("kernel", self.kernel, KERNELS)
        _check_choice("storage", self.storage, STORAGES)
        _check_choice("parallel", self.parallel, PARALLEL)
        _check_integer("check_ranks_steps", self.check_ranks_steps, 0, None)
        _check_choice("estimator", self.estimator, tuple(ESTIMATORS))
        _check_choice("rule", self.rule, tuple(RULES))
        for name, share in (("momentum", self.momentum), ("rms_decay", self.rms_decay)):
            _check_number(name, share)
            if not 0 <= share < 1:
                raise ValueError(f"{name} is {share}; it must be at least 0 and below 1")
        _check_number("clip", self.clip)
        if not (math.isfinite(self.clip) and self.clip >= 0):
            raise ValueError(f"clip is {self.clip}; it must be a finite number above 0, or 0 for none")
        _check_integer("window", self.window, 1, LARGEST_WINDOW)
        _check_integer("anchor_steps", self.anchor_steps, 1, LARGEST_WINDOW)
        _check_integer("rank", self.rank, 1, LARGEST_RANK)
        _check_integer("basis_steps", self.basis_steps, 1, None)
        if self.tensor_scales not in KINDS:
            read_patterns(self.tensor_scales)
        if self.estimator == "lowrank" and self.kernel in ("numba", "triton"):
            raise ValueError(
                f"kernel {self.kernel!r} has no directions of low rank, which the estimator lowrank takes; choose "
                "'auto' or 'torch'"
            )
        if self.estimator == "per_example" and self.parallel != "data":
            raise ValueError(
                f"parallel {self.parallel!r} excludes the estimator per_example, which has a direction for each "
                "record; choose 'data'"
            )
        ESTIMATORS[self.estimator](self)  # ValueError where settings do not go together
        Course(self)


def _check_number(name: str, value: object) -> None:
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise ValueError(f"{name} is {value!r}; it must be a number")


def _check_integer(name: str, value: object, low: int, high: int | None) -> None:
    allowed = f"an integer of at least {low}" if high is None else f"an integer from {low} to {high}"
    if isinstance(value, bool) or not isinstance(value, int):
        raise ValueError(f"{name} is {value!r}; it must be {allowed}")
    if value < low or (high is not None and value > high):
        raise ValueError(f"{name} is {value}; it must be {allowed}")


def _check_choice(name: str, value: object, allowed: tuple[str, ...]) -> None:
    if value not in allowed:
        raise ValueError(f"{name} is {value!r}; it must be one of {', '.join(allowed)}")
