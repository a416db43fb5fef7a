"""`MeZO` of a model that stays on the host while its forwards run on a device."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

from llava.mezo.offloading.weights import OffloadedWeights
from llava.mezo.optimizer import MeZO
from llava.mezo.weights import NativeStorage

logger = logging.getLogger(__name__)


class OffloadedMeZO(MeZO):
    """As `MeZO`; read parameters of the model within `exported`.

    Args:
        device: that forwards run on.

    Raises:
        ValueError: also a parameter that is not on the host.
    """

    def __init__(self, *args: Any, device: torch.device, **kwargs: Any) -> None:
        self._there = torch.empty(0, device=device).device
        super().__init__(*args, **kwargs)
        logger.info("mezo: weights stay on the host and come to %s layer by layer, without CUDA graphs", device)

    def _device_for(self, parameters: Sequence[nn.Parameter]) -> torch.device:
        if any(parameter.device.type != "cpu" for parameter in parameters):
            raise ValueError("weights that are offloaded start on the host; move the model there (model.cpu())")
        return self._there

    def _made_weights(self) -> OffloadedWeights:
        return OffloadedWeights(*self._of_weights(), self._there)

    def release(self) -> None:
        """As the base class; forwards go on running on the device."""
        super().release()
        self.storages = {parameter: NativeStorage(parameter) for parameter in self.storages}
        self.set_sizes(self.sizes)
