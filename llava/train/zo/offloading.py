"""Whether a run's weights stay on the host, `--zo_offload`."""

from __future__ import annotations

import logging

import torch
import transformers
from torch import nn

from llava.mezo.offloading.cargo import moves
from llava.train.zo.device_settings import DeviceSettings
from llava.train.zo.sparse_loss import whole_model

logger = logging.getLogger(__name__)


class OffloadedRun(transformers.Trainer):
    """A Trainer that leaves its model on the host where `--zo_offload` says so."""

    _offloads: bool | None = None

    def _move_model_to_device(self, model: nn.Module, device: torch.device) -> None:
        if not self._offloads_of(model):
            super()._move_model_to_device(model, device)

    def _offloads_of(self, model: nn.Module) -> bool:
        """Decided once, before anything is moved."""
        if self._offloads is None:
            wanted = DeviceSettings.of(self.args).offload
            self._offloads = offloads(wanted, model, self.args.device, self.args.train_batch_size)
        return self._offloads


def offloads(wanted: str, model: nn.Module, device: torch.device, rows: int) -> bool:
    """Whether weights stay on the host: if that is asked for or, with "auto", if they do not fit the device.

    Args:
        rows: of a batch on this device.
    """
    if wanted != "auto":
        return wanted == "cpu"
    if device.type != "cuda":
        logger.info("--zo_offload auto: weights stay where they are, since this run is on %s", device)
        return False
    free = torch.cuda.get_device_properties(device).total_memory / 1e9
    needed = gigabytes_needed(model, rows)
    logger.info(
        "--zo_offload auto: weights %s, since %.1f GB are counted without offloading and the card has %.1f",
        "stay on the host" if needed > free else "go to the card",
        needed,
        free,
    )
    return needed > free


def gigabytes_needed(model: nn.Module, rows: int) -> float:
    """Of a card that holds all weights: these, both copies of a layer, activations of `rows` rows, a reserve.

    A row is one of `llava.train.footprint.Batch`.
    """
    from llava.train.footprint import Batch, forward_bytes, sizes_of
    from llava.train.methods import GB, RESERVE

    held = sum(p.numel() * p.element_size() for p in model.parameters())
    base = whole_model(model)
    if base is not None and hasattr(base, "get_vision_tower"):
        of = sizes_of(base)
        held += 4 * of.layer + int(forward_bytes(of, Batch(rows)))
    return held / GB + RESERVE


def to_host(model: nn.Module) -> None:
    """What can be offloaded to the host's memory; layers in 4 or 8 bits are loaded where they stay."""
    for parameter in model.parameters():
        if moves(parameter):
            parameter.data = parameter.data.cpu()
