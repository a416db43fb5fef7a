"""The forwards of a step, the cheapest way that a model and its objective allow."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from llava.mezo import MeZO, reuse_outputs
from llava.mezo.algorithms.interface import Point
from llava.mezo.answer_tree import AnswerTree
from llava.mezo.errors import InputError
from llava.mezo.head import cross_entropy, token_errors
from llava.mezo.measuring import Loss
from llava.train.zo.settings import Settings
from llava.train.zo.sparse_loss import Measure, laid_out_loss, plain_head, sparse_loss, whole_model
from llava.train.zo.step_inputs import KnownFeatures, StepInputs, frozen_image_modules, image_modules

Inputs = dict[str, Any]
Objective = Callable[[nn.Module, Inputs], float]
"""Takes the place of the loss: of a model, and a batch, for which it runs the model many times."""


class Forwards:
    """Hands the losses of micro-batches to the engine.

    Args:
        network: the model without a wrapper that would run the forward under autocast.
        prepare: brings a batch to the device.
        whole_loss: of a model and a batch, for models that need their own forward.
        answers: among which the right one is to become likelier, in place of all tokens.
        known: asked for features of images that a batch does not bring with it.

    Raises:
        InputError: an objective that the model does not allow, at the first batch.
    """

    def __init__(
        self,
        mezo: MeZO,
        network: Any,
        zo: Settings,
        prepare: Callable[[Inputs], Inputs],
        whole_loss: Callable[[nn.Module, Inputs], torch.Tensor],
        objective: Objective | None = None,
        known: KnownFeatures | None = None,
        answers: AnswerTree | None = None,
    ) -> None:
        self.mezo = mezo
        self.network = network
        self.objective = objective
        self._prepare = prepare
        self._whole_loss = whole_loss
        self._flag = f"--zo_objective {zo.objective}"
        self._answers = None if answers is None else answers.to(mezo.device)
        self._measure: Measure = token_errors if zo.objective == "accuracy" else cross_entropy
        of_layout: Measure = self._measure
        if answers is not None:
            self._measure, of_layout = answers.loss_of_tokens, answers.loss
        base = whole_model(network)
        lays_out = base is not None and hasattr(base, "geometry") and plain_head(base) is not None
        self.inputs = StepInputs(base, mezo, zo.length_bucket, known) if lays_out else None
        self._laid_out_loss = functools.partial(laid_out_loss, base, measure=of_layout)

    def accumulate(self, step: int, inputs: Inputs, rows: int) -> float:
        """The forwards of one micro-batch, which counts as so many rows; their mean loss."""
        with self._loss_of(inputs) as (loss, tensors, keep):
            return self.mezo.accumulate(step, loss, tensors, weight=rows, keep=keep)

    def losses_at(self, points: Sequence[Point], inputs: Inputs) -> list[float]:
        """The losses of a batch at some points; no part of a step."""
        with self._loss_of(inputs) as (loss, tensors, keep):
            return self.mezo.losses_at(points, loss, tensors, keep)

    @contextmanager
    def _loss_of(self, inputs: Inputs) -> Iterator[tuple[Loss, Mapping[str, torch.Tensor] | None, bool]]:
        """What the engine takes for a batch: a loss, its inputs if they are tensors alone, whether copies are kept."""
        network, objective = self.network, self.objective
        if objective is not None:
            yield lambda: objective(network, inputs), None, True
            return
        tensors = self.inputs(inputs) if self.inputs is not None and inputs.get("labels") is not None else None
        if tensors is not None:
            if self._answers is not None:
                tensors["targets"] = self._answers.places(tensors["targets"])
            yield self._laid_out_loss, tensors, False
            return
        inputs = with_pixels_as_weights(network, self._prepare(inputs))
        with reuse_outputs(frozen_image_modules(network)):
            yield lambda: self._loss(inputs), None, False

    def loss(self, inputs: Inputs) -> torch.Tensor:
        """The cross entropy of a batch under the weights as they are, whatever the objective."""
        laid_out = self.inputs
        tensors = None if laid_out is None else laid_out(inputs)
        if laid_out is not None and tensors is not None:
            return laid_out_loss(laid_out.model, {name: t.to(self.mezo.device) for name, t in tensors.items()})
        inputs = with_pixels_as_weights(self.network, self._prepare(inputs))
        loss = sparse_loss(self.network, inputs)
        return self._whole_loss(self.network, dict(inputs)) if loss is None else loss

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
