"""The Hessian of a run's loss in what is trained, by its products with vectors.

Two backward passes (Pearlmutter 1994), in float32: exact up to rounding, 6e-6 of their size on the tiny model. The
difference of two gradients takes 10 to 30 % less time, and no one step is right for it: at 1e-5 a weight, products with
random vectors are within 0.5 % and those with the sharpest directions up to 23 % off. Forwards alone give `v'Hv`, and
no `Hv` (llava/mezo/curvature.py).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel

from llava.train.zo.forwards import with_pixels_as_weights


class Hessian:
    """Of the mean of some losses, each of as much weight as the others.

    Args:
        weights: in which it is.
        losses: each a function of no arguments, in float32 or float64.
    """

    def __init__(self, weights: Iterable[torch.Tensor], losses: Sequence[Callable[[], torch.Tensor]]) -> None:
        self.weights, self.losses = list(weights), losses
        self.size = sum(weight.numel() for weight in self.weights)

    @classmethod
    def of_run(cls, trainer: Any, batches: Sequence[dict[str, Any]]) -> Hessian:
        """Of batches as the collator gives them; the trainer's model is in float32 and without dropout from now on."""
        model = trainer.model.float().eval()
        model.set_attn_implementation("sdpa")  # flash attention has no float32
        prepared = [with_pixels_as_weights(model, trainer._prepare_inputs(batch)) for batch in batches]
        losses = [lambda batch=batch: trainer.compute_loss(model, dict(batch)) for batch in prepared]
        return cls((weight for weight in model.parameters() if weight.requires_grad), losses)

    def random(self, seed: int) -> torch.Tensor:
        """Independent normal numbers, [size]."""
        numbers = torch.randn(self.size, generator=torch.Generator().manual_seed(seed))
        return numbers.to(self.weights[0])

    def gradient(self, loss: Callable[[], torch.Tensor]) -> torch.Tensor:
        """Of one of the losses, [size]."""
        return _flat(self._gradients(loss()))

    def times(self, vector: torch.Tensor) -> torch.Tensor:
        """The product with a vector, both [size]."""
        parts = [
            part.view_as(weight)
            for part, weight in zip(vector.split([w.numel() for w in self.weights]), self.weights, strict=True)
        ]
        total = torch.zeros_like(vector)
        with sdpa_kernel(SDPBackend.MATH):  # the only form of attention with a second derivative
            for loss in self.losses:
                first = self._gradients(loss(), create_graph=True)
                along = torch.stack([(gradient * part).sum() for gradient, part in zip(first, parts, strict=True)])
                total += _flat(self._gradients(along.sum()))
        return total / len(self.losses)

    def _gradients(self, value: torch.Tensor, create_graph: bool = False) -> tuple[torch.Tensor, ...]:
        """Zeros for weights that have no part in it."""
        return torch.autograd.grad(
            value, self.weights, create_graph=create_graph, allow_unused=True, materialize_grads=True
        )


def _flat(tensors: Iterable[torch.Tensor]) -> torch.Tensor:
    return torch.cat([tensor.flatten() for tensor in tensors])
