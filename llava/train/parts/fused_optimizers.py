"""LOMO and AdaLomo: each weight takes its step inside the backward pass, as soon as its gradient is whole.

No gradient outlives its weight's step, and no weight has a float32 master: beside the weights there are one gradient
and, with AdaLomo, a row and a column of second moments. Steps are computed in float32, a few rows at a time, and
rounded to the weight's dtype, so that in bfloat16 what is below half its spacing is lost: rates are large (SGD's with
LOMO; a share of the weight's root mean square with AdaLomo).

The package lomo-optim, by the papers' authors, has the same arithmetic and is what tests compare with. Here there are
also parameter groups, a state that is saved and loaded, weights of any shape, CPUs (its AdaLomo asks for CUDA), and no
float32 copies of a whole weight.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import Any

import torch

from llava.train.parts.param_groups import Groups, numbered

SLICE = 1 << 20
"""Elements that are in float32 at a time."""


class FusedOptimizer(torch.optim.Optimizer):
    """What both have in common: `step` has nothing left to do, since the backward pass has taken all steps."""

    def __init__(self, params: Groups, **defaults: Any) -> None:
        super().__init__(params, defaults)
        self._group_of: dict[torch.Tensor, int] = {}
        for number, group in enumerate(self.param_groups):
            for parameter in group["params"]:
                self._group_of[parameter] = number
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

    @torch.no_grad()
    def _take_gradient(self, parameter: torch.Tensor) -> None:
        gradient, parameter.grad = parameter.grad, None
        assert gradient is not None
        self.update(parameter, gradient, self.param_groups[self._group_of[parameter]])


class Lomo(FusedOptimizer):
    """Stochastic gradient descent inside the backward pass.

    Lv et al. 2023, "Full Parameter Fine-tuning for Large Language Models with Limited Resources", algorithm 1, without
    its second backward pass for the norm of all gradients.

    Args:
        params: parameter groups.
        weight_decay: share of the rate that a step takes from the weights.
        clip_grad_value: largest size of an element of a gradient; 0: any.
    """

    def __init__(
        self, params: Groups, lr: float = 1e-3, weight_decay: float = 0.0, clip_grad_value: float = 0.0
    ) -> None:
        super().__init__(params, lr=lr, weight_decay=weight_decay, clip_grad_value=clip_grad_value)

    def update(self, parameter: torch.Tensor, gradient: torch.Tensor, group: dict[str, Any]) -> None:
        """w = (1 - lr * decay) w - lr g."""
        largest = group["clip_grad_value"]
        for rows in _slices(parameter):
            slopes = gradient[rows].float().clamp(-largest, largest) if largest > 0 else gradient[rows]
            _add(parameter, rows, slopes, group["lr"], group["weight_decay"])


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
    """

    def __init__(
        self,
        params: Groups,
        lr: float = 1e-3,
        weight_decay: float = 0.0,
        eps: tuple[float, float] = (1e-30, 1e-3),
        clip_threshold: float = 1.0,
        decay_rate: float = -0.8,
    ) -> None:
        if clip_threshold <= 0 or decay_rate >= 0:
            raise ValueError(f"clip_threshold {clip_threshold} must be above 0 and decay_rate {decay_rate} below")
        super().__init__(
            params, lr=lr, weight_decay=weight_decay, eps=eps, clip_threshold=clip_threshold, decay_rate=decay_rate
        )

    def update(self, parameter: torch.Tensor, gradient: torch.Tensor, group: dict[str, Any]) -> None:
        """w = (1 - rate * decay) w - rate u; u = g / root of second moments, cut to the threshold."""
        state = self.state[parameter]
        state["step"] = state.get("step", 0) + 1
        kept = 1.0 - math.pow(state["step"], group["decay_rate"])
        scale = self._second_moments(parameter, gradient, state, kept, group["eps"][0])
        of_step = of_weight = 0.0
        for rows in _slices(parameter):
            of_step += float(scale(rows).mul_(gradient[rows]).square_().sum())
            of_weight += float(parameter[rows].float().square().sum())
        too_large = max(1.0, math.sqrt(of_step / parameter.numel()) / group["clip_threshold"])
        rate = group["lr"] * max(group["eps"][1], math.sqrt(of_weight / parameter.numel()))
        for rows in _slices(parameter):
            _add(parameter, rows, scale(rows).mul_(gradient[rows]), rate, group["weight_decay"], too_large)

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
    parameter: torch.Tensor, rows: Any, step: torch.Tensor, rate: float, decay: float, divisor: float = 1.0
) -> None:
    """Some rows less `rate` times `step` / `divisor`, computed in float32 and rounded once."""
    values = parameter[rows].float()  # itself, if it is in float32
    if decay > 0:
        values.mul_(1.0 - rate * decay)
    values.add_(step, alpha=-rate / divisor)
    parameter[rows] = values
