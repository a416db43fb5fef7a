"""LOMO and AdaLomo: each weight takes its step inside the backward pass, as soon as its gradient is whole.

No gradient outlives its weight's step, and no weight has a float32 master: beside the weights there are one gradient
and, with AdaLomo, a row and a column of second moments. Steps are computed in float32, a few rows at a time, and
rounded to the weight's dtype. In bfloat16 most steps are far below half the spacing, and rounding to nearest would
lose them: there it is stochastic and without bias, as in Gupta et al. 2015, "Deep Learning with Limited Numerical
Precision", section 3.1. Its bits are a function of the seed, the weight's number and the count of its steps, so that a
run that goes on has those of the unbroken one.

The package lomo-optim, by the papers' authors, has the same arithmetic, but rounds to nearest; tests compare with it.
Here there are also parameter groups, a state that is saved and loaded, weights of any shape, CPUs (its AdaLomo asks for
CUDA), and no float32 copies of a whole weight.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Iterator
from typing import Any

import torch

from llava.train.parts.param_groups import Groups, numbered

SLICE = 1 << 20
"""Elements that are in float32 at a time."""


class FusedOptimizer(torch.optim.Optimizer):
    """What both have in common: `step` has nothing left to do, since the backward pass has taken all steps.

    Args:
        params: parameter groups.
        seed: of the rounding of bfloat16 weights; no part of the state.
        defaults: what groups have that do not say.
    """

    def __init__(self, params: Groups, seed: int = 0, **defaults: Any) -> None:
        super().__init__(params, defaults)
        self._seed = seed
        self._group_of: dict[torch.Tensor, int] = {}
        self._number_of: dict[torch.Tensor, int] = {}
        for number, group in enumerate(self.param_groups):
            for parameter in group["params"]:
                self._group_of[parameter] = number
                self._number_of[parameter] = len(self._number_of)
                if parameter.requires_grad:
                    parameter.register_post_accumulate_grad_hook(self._take_gradient)

    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Nothing but the closure's value."""
        return None if closure is None else closure()

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """As the base class, which would round the state to the dtype of the weights."""
        super().load_state_dict(state_dict)
        for number, parameter in numbered(self, state_dict):
            for name, value in state_dict["state"].get(number, {}).items():
                moved = value.to(parameter.device, copy=True) if isinstance(value, torch.Tensor) else value
                self.state[parameter][name] = moved

    def update(self, parameter: torch.Tensor, gradient: torch.Tensor, group: dict[str, Any]) -> None:
        """One weight's step, in place."""
        raise NotImplementedError

    def _draws(self, parameter: torch.Tensor) -> torch.Generator | None:
        """Of the bits that round this weight in its present step; None: it is rounded to nearest."""
        if parameter.dtype != torch.bfloat16:
            return None
        drawn = random.Random(f"{self._seed} {self._number_of[parameter]} {self.state[parameter]['step']}")
        return torch.Generator(parameter.device).manual_seed(drawn.getrandbits(32))

    @torch.no_grad()
    def _take_gradient(self, parameter: torch.Tensor) -> None:
        gradient, parameter.grad = parameter.grad, None
        assert gradient is not None
        state = self.state[parameter]
        state["step"] = state.get("step", 0) + 1
        self.update(parameter, gradient, self.param_groups[self._group_of[parameter]])


class Lomo(FusedOptimizer):
    """Stochastic gradient descent inside the backward pass.

    Lv et al. 2023, "Full Parameter Fine-tuning for Large Language Models with Limited Resources", algorithm 1, without
    its second backward pass for the norm of all gradients.

    Args:
        params: parameter groups.
        weight_decay: share of the rate that a step takes from the weights.
        clip_grad_value: largest size of an element of a gradient; 0: any.
        seed: of the rounding of bfloat16 weights.
    """

    def __init__(
        self,
        params: Groups,
        lr: float = 1e-3,
        weight_decay: float = 0.0,
        clip_grad_value: float = 0.0,
        seed: int = 0,
    ) -> None:
        super().__init__(params, seed, lr=lr, weight_decay=weight_decay, clip_grad_value=clip_grad_value)

    def update(self, parameter: torch.Tensor, gradient: torch.Tensor, group: dict[str, Any]) -> None:
        """w = (1 - lr * decay) w - lr g."""
        largest, draws = group["clip_grad_value"], self._draws(parameter)
        for rows in _slices(parameter):
            slopes = gradient[rows].float().clamp(-largest, largest) if largest > 0 else gradient[rows]
            _add(parameter, rows, slopes, draws, group["lr"], group["weight_decay"])


class AdaLomo(FusedOptimizer):
    """Factored second moments and steps in proportion to the size of the weights, inside the backward pass.

    Lv et al. 2023, "AdaLomo: Low-memory Optimization with Adaptive Learning Rate", algorithm 1 (as Adafactor's of
    Shazeer and Stern 2018, without a first moment). A weight of more than two dimensions counts as a matrix of its
    first dimension and all others. Steps are counted for each weight by itself.

    Args:
        params: parameter groups.
        lr: size of a step in units of the weight's root mean square.
        weight_decay: share of that size that a step takes from the weights.
        eps: added to squared gradients, and the least root mean square that a weight counts with.
        clip_threshold: most that the root mean square of a step over its size may be.
        decay_rate: exponent of the second moments' decay.
        seed: of the rounding of bfloat16 weights.
    """

    def __init__(
        self,
        params: Groups,
        lr: float = 1e-3,
        weight_decay: float = 0.0,
        eps: tuple[float, float] = (1e-30, 1e-3),
        clip_threshold: float = 1.0,
        decay_rate: float = -0.8,
        seed: int = 0,
    ) -> None:
        if clip_threshold <= 0 or decay_rate >= 0:
            raise ValueError(f"clip_threshold {clip_threshold} must be above 0 and decay_rate {decay_rate} below")
        more = {"eps": eps, "clip_threshold": clip_threshold, "decay_rate": decay_rate}
        super().__init__(params, seed, lr=lr, weight_decay=weight_decay, **more)

    def update(self, parameter: torch.Tensor, gradient: torch.Tensor, group: dict[str, Any]) -> None:
        """w = (1 - rate * decay) w - rate u; u = g / root of second moments, cut to the threshold."""
        state, draws = self.state[parameter], self._draws(parameter)
        kept = 1.0 - math.pow(state["step"], group["decay_rate"])
        scale = self._second_moments(parameter, gradient, state, kept, group["eps"][0])
        of_step = of_weight = 0.0
        for rows in _slices(parameter):
            of_step += float(scale(rows).mul_(gradient[rows]).square_().sum())
            of_weight += float(parameter[rows].float().square().sum())
        too_large = max(1.0, math.sqrt(of_step / parameter.numel()) / group["clip_threshold"])
        rate = group["lr"] * max(group["eps"][1], math.sqrt(of_weight / parameter.numel()))
        for rows in _slices(parameter):
            _add(parameter, rows, scale(rows).mul_(gradient[rows]), draws, rate, group["weight_decay"], too_large)

    def _second_moments(
        self, parameter: torch.Tensor, gradient: torch.Tensor, state: dict[str, Any], kept: float, eps: float
    ) -> Callable[[Any], torch.Tensor]:
        """Bring them up to date; what gradients of some rows are multiplied by, in float32."""
        if parameter.dim() < 2:
            moments = _moving(state, "exp_avg_sq", gradient.float().square().add_(eps), kept)
            return lambda rows: moments[rows].rsqrt()
        matrix = gradient.flatten(1)
        of_rows = gradient.new_empty(len(matrix), dtype=torch.float32)
        of_columns = gradient.new_zeros(matrix.shape[1], dtype=torch.float32)
        for rows in _slices(parameter):
            squares = matrix[rows].float().square().add_(eps)
            of_rows[rows] = squares.mean(dim=1)
            of_columns += squares.sum(dim=0) / len(matrix)
        row = _moving(state, "exp_avg_sq_row", of_rows, kept)
        column = _moving(state, "exp_avg_sq_col", of_columns, kept).rsqrt()
        row = (row / row.mean()).rsqrt_()
        return lambda rows: (row[rows].unsqueeze(1) * column).view(gradient[rows].shape)


FUSED: dict[str, type[FusedOptimizer]] = {"lomo": Lomo, "adalomo": AdaLomo}
"""By the names that transformers has for `--optim`."""


def _moving(state: dict[str, Any], name: str, value: Any, kept: float) -> torch.Tensor:
    """The moving mean of this name, brought up to date."""
    mean = state.setdefault(name, torch.zeros_like(value))
    return mean.mul_(kept).add_(value, alpha=1.0 - kept)


def _slices(parameter: torch.Tensor) -> Iterator[Any]:
    """Indices of a few rows at a time, all of a weight's."""
    if parameter.dim() == 0:
        yield ...
        return
    rows = max(1, SLICE * len(parameter) // max(1, parameter.numel()))
    for start in range(0, len(parameter), rows):
        yield slice(start, start + rows)


def _add(
    parameter: torch.Tensor,
    rows: Any,
    step: torch.Tensor,
    draws: torch.Generator | None,
    rate: float,
    decay: float,
    divisor: float = 1.0,
) -> None:
    """Some rows less `rate` times `step` / `divisor`, computed in float32 and rounded once.

    Args:
        draws: of the bits of stochastic rounding to bfloat16; None: to nearest, in the weight's dtype.
    """
    values = parameter[rows].float()  # itself, if it is in float32
    if decay > 0:
        values.mul_(1.0 - rate * decay)
    values.add_(step, alpha=-rate / divisor)
    parameter[rows] = values if draws is None else _rounded(values, draws)


def _rounded(values: torch.Tensor, draws: torch.Generator) -> torch.Tensor:
    """float32 values to one of their two neighbours in bfloat16, which are their means; what is not finite stays.

    16 random bits are added to the pattern, and its last 16 are cut off.
    """
    bits = torch.randint(0, 1 << 16, values.shape, generator=draws, dtype=torch.int32, device=values.device)
    bits.add_(values.view(torch.int32)).bitwise_and_(-1 << 16)
    return torch.where(values.isfinite(), bits.view(torch.float32), values).bfloat16()
