"""What a Trainer does for gradients, where there are none."""

from __future__ import annotations

import functools
from typing import Any

import transformers


class WithoutGradients(transformers.Trainer):
    """A Trainer whose ranks share losses alone."""

    model: Any

    def create_accelerator_and_postprocess(self) -> None:
        """As the base class, but models are not wrapped in DistributedDataParallel.

        Ranks share losses, not gradients, and its buffers for these would take as much memory as the trained weights.
        """
        super().create_accelerator_and_postprocess()
        self.accelerator.prepare_model = functools.partial(self.accelerator.prepare_model, evaluation_mode=True)
        self.accelerator.prepare_optimizer = _as_it_is  # a wrapper would scale gradients
        self.accelerator.device_placement = False  # layouts are made of batches as the data loader gives them

    def train(self, *args: Any, **kwargs: Any) -> Any:
        """As the base class, whose loop would look through all modules for gradients to clear after each step."""
        model = self.model  # which `model_init` replaces
        model.zero_grad = _nothing
        try:
            return super().train(*args, **kwargs)
        finally:
            vars(model).pop("zero_grad", None)

    def _get_grad_norm(self, *given: Any, **options: Any) -> None:
        """None: there are no gradients to look for."""


def _as_it_is(optimizer: Any, **kwargs: Any) -> Any:
    return optimizer


def _nothing(**kwargs: Any) -> None:
    pass
