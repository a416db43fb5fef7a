"""The forwards of a step, the cheapest way that a model and its objective allow."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from llava.mezo import MeZO, reuse_outputs
from llava.mezo.algorithms.interface import Point
from llava.mezo.errors import InputError
from llava.mezo.head import cross_entropy, token_errors
from llava.mezo.measuring import Loss
from llava.train.zo.image_modules import frozen_image_modules, image_modules
from llava.train.zo.settings import Settings
from llava.train.zo.sparse_loss import Measure, sparse_loss

Inputs = dict[str, Any]
MEASURES: dict[str, Measure] = {"loss": cross_entropy, "accuracy": token_errors}
"""What a step is to lessen, by `--zo_objective`."""
Asked = tuple[Loss, "Mapping[str, torch.Tensor] | None", bool]
"""What the engine takes for a batch: a loss, its inputs if they are tensors alone, whether copies are kept."""


class Forwards:
    """Hands the losses of micro-batches to the engine.

    Args:
        network: the model without a wrapper that would run the forward under autocast.
        prepare: brings a batch to the device.
        whole_loss: of a model and a batch, for models that need their own forward.
        measure: what is taken of supervised tokens; default: by the objective.

    Raises:
        InputError: an objective that is not known or, at the first batch, that the model does not allow.
    """

    def __init__(
        self,
        mezo: MeZO,
        network: Any,
        zo: Settings,
        prepare: Callable[[Inputs], Inputs],
        whole_loss: Callable[[nn.Module, Inputs], torch.Tensor],
        *,
        measure: Measure | None = None,
    ) -> None:
        self.mezo = mezo
        self.network = network
        self._prepare = prepare
        self._whole_loss = whole_loss
        self._flag = f"--zo_objective {zo.objective}"
        if measure is None and zo.objective not in MEASURES:
            raise InputError(f"{self._flag}: allowed are {', '.join(MEASURES)}")
        self._measure: Measure = measure or MEASURES[zo.objective]

    def accumulate(self, step: int, inputs: Inputs, rows: int) -> float:
        """The forwards of one micro-batch, which counts as so many rows; their mean loss."""
        with self._loss_of(inputs) as (loss, tensors, keep):
            return self.mezo.accumulate(step, loss, tensors, weight=rows, keep=keep)

    def losses_at(self, points: Sequence[Point], inputs: Inputs) -> list[float]:
        """The losses of a batch at some points; no part of a step."""
        with self._loss_of(inputs) as (loss, tensors, keep):
            return self.mezo.losses_at(points, loss, tensors, keep)

    @contextmanager
    def _loss_of(self, inputs: Inputs) -> Iterator[Asked]:
        inputs = self._prepared(inputs)
        with reuse_outputs(frozen_image_modules(self.network)):
            yield lambda: self._loss(inputs), None, False

    def _prepared(self, inputs: Inputs) -> Inputs:
        return with_pixels_as_weights(self.network, self._prepare(inputs))

    def _loss(self, inputs: Inputs) -> torch.Tensor:
        """Of one forward; without logits where the model is a language model that allows it."""
        loss = sparse_loss(self.network, inputs, self._measure)
        if loss is not None:
            return loss
        if self._measure is not cross_entropy:
            raise InputError(f"{self._flag}: {type(self.network).__name__} has no plain output head to ask")
        return self._whole_loss(self.network, dict(inputs))


def with_pixels_as_weights(network: nn.Module, inputs: Inputs) -> Inputs:
    """The inputs with pixels in the dtype of the modules that read them, which outside autocast may take no other."""
    weights = [p for module in image_modules(network) for p in module.parameters() if p.is_floating_point()]
    images = inputs.get("images")
    if images is None or not weights:
        return inputs
    dtype = weights[-1].dtype
    return {**inputs, "images": images.to(dtype) if isinstance(images, torch.Tensor) else [i.to(dtype) for i in images]}
