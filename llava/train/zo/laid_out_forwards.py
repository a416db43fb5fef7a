"""Forwards of models that lay batches out on the host, and of objectives that are about whole answers."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from llava.mezo import MeZO
from llava.mezo.answer_tree import AnswerTree
from llava.mezo.graphs import record_forwards
from llava.mezo.head import cross_entropy
from llava.train.zo.device_settings import DeviceSettings
from llava.train.zo.forwards import MEASURES, Asked, Forwards, Inputs
from llava.train.zo.settings import Settings
from llava.train.zo.sparse_loss import Measure, plain_head, sparse_loss, whole_model
from llava.train.zo.step_inputs import KnownFeatures, StepInputs

Objective = Callable[[nn.Module, Inputs], float]
"""Takes the place of the loss: of a model, and a batch, for which it runs the model many times."""


class LaidOutForwards(Forwards):
    """`Forwards` of tensors alone where the model allows it, which are recorded as CUDA graphs.

    Args:
        given: what `Forwards` takes besides.
        place: the run's flags for it.
        objective: takes the place of the loss.
        known: asked for features of images that a batch does not bring with it.
        answers: among which the right one is to become likelier, in place of all tokens.
    """

    def __init__(
        self,
        mezo: MeZO,
        network: Any,
        zo: Settings,
        *given: Any,
        place: DeviceSettings,
        objective: Objective | None = None,
        known: KnownFeatures | None = None,
        answers: AnswerTree | None = None,
    ) -> None:
        self.objective = objective
        self._answers = None if answers is None else answers.to(mezo.device)
        measure = of_layout = MEASURES.get(zo.objective, cross_entropy)
        if answers is not None:
            measure, of_layout = answers.loss_of_tokens, answers.loss
        super().__init__(mezo, network, zo, *given, measure=measure)
        base = whole_model(network)
        lays_out = base is not None and hasattr(base, "geometry") and plain_head(base) is not None
        self.inputs = StepInputs(base, mezo, place.length_bucket, known) if lays_out else None
        begun = 0 if self.inputs is None else self.inputs.begun
        self._laid_out_loss = functools.partial(laid_out_loss, base, measure=of_layout, begun=begun)
        record_forwards(mezo, place.cuda_graphs, place.graph_memory_gb)

    @contextmanager
    def _loss_of(self, inputs: Inputs) -> Iterator[Asked]:
        network, objective = self.network, self.objective
        if objective is not None:
            yield lambda: objective(network, inputs), None, True
            return
        tensors = self.inputs(inputs) if self.inputs is not None and inputs.get("labels") is not None else None
        if tensors is None:
            with super()._loss_of(inputs) as asked:
                yield asked
            return
        if self._answers is not None:
            tensors["targets"] = self._answers.places(tensors["targets"])
        yield self._laid_out_loss, tensors, False

    def step_loss(self, inputs: Inputs) -> torch.Tensor:
        """What steps lessen, of a batch under the weights as they are."""
        with self._loss_of(inputs) as (loss, tensors, _):
            given = () if tensors is None else ({name: t.to(self.mezo.device) for name, t in tensors.items()},)
            return torch.as_tensor(loss(*given))

    def loss(self, inputs: Inputs) -> torch.Tensor:
        """The cross entropy of a batch under the weights as they are, whatever the objective."""
        laid_out = self.inputs
        tensors = None if laid_out is None else laid_out(inputs)
        if laid_out is not None and tensors is not None:
            tensors = {name: t.to(self.mezo.device) for name, t in tensors.items()}
            return laid_out_loss(laid_out.model, tensors, begun=laid_out.begun)
        inputs = self._prepared(inputs)
        loss = sparse_loss(self.network, inputs)
        return self._whole_loss(self.network, dict(inputs)) if loss is None else loss


def laid_out_loss(
    model: Any, tensors: Mapping[str, torch.Tensor], measure: Measure = cross_entropy, begun: int = 0
) -> torch.Tensor:
    """`sparse_loss` of a batch whose layout was worked out on the host; nothing here waits for the device.

    Args:
        model: a LLaVA model whose head is plain, without PEFT's wrapper.
        tensors, begun: as for its `laid_out_states`.
        measure: as for `sparse_loss`.
    """
    head: Any = plain_head(model)
    return measure(model.laid_out_states(tensors, begun), head.weight, tensors["targets"])
