"""The usual MeZO step, to measure ours against: weights perturbed in place, noise from torch's generator.

This is how the paper's code and LLaVA-NeXT arrange it, written here for comparison alone: for each trained tensor
torch.normal, added to the weights, four times a step (+eps, -2 eps, +eps, update), with whole forwards in between.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import nn


class InPlaceMeZO:
    """MeZO of one direction over `parameters`.

    Args:
        loss: the loss of the batch, a tensor of one element; called twice a step.
    """

    def __init__(self, parameters: Sequence[nn.Parameter], eps: float, lr: float) -> None:
        self.parameters = list(parameters)
        self.eps = eps
        self.lr = lr

    @torch.no_grad()
    def step(self, seed: int, loss: Callable[[], torch.Tensor]) -> float:
        """One step; returns the loss at the plus point."""
        self._add(seed, self.eps)
        plus = float(loss())
        self._add(seed, -2 * self.eps)
        minus = float(loss())
        self._add(seed, self.eps)
        self._add(seed, -self.lr * (plus - minus) / (2 * self.eps))
        return plus

    def _add(self, seed: int, scale: float) -> None:
        torch.manual_seed(seed)
        for parameter in self.parameters:
            z = torch.normal(0.0, 1.0, parameter.shape, dtype=parameter.dtype, device=parameter.device)
            parameter.data.add_(z, alpha=scale)
