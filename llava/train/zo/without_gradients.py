"""What a Trainer does for gradients, where there are none."""

from __future__ import annotations

import functools
from typing import Any

import transformers


class WithoutGradients(transformers.Trainer):
    """A Trainer whose ranks share losses alone."""

    def create_accelerator_and_postprocess(self) -> None:
        """As the base class, but models are not wrapped in DistributedDataParallel.

        Ranks share losses, not gradients, and its buffers for these would take as much memory as the trained weights.
        """
        super().create_accelerator_and_postprocess()
        self.accelerator.prepare_model = functools.partial(self.accelerator.prepare_model, evaluation_mode=True)
        self.accelerator.device_placement = False  # layouts are made of batches as the data loader gives them

    def _get_grad_norm(self, *given: Any, **options: Any) -> None:
        """None: there are no gradients to look for."""
