"""What a step of an adapter need not keep for its backward pass, where layers are run again in it.

With a frozen base most of a step's memory is an MLP's rows of the inner width: a dozen for each position, while a layer
is run again. Here an MLP takes `TILE` positions at a time, and keeps its input alone (TiledMLP of Bekman et al. 2025,
"Arctic Long Sequence Training"). It is run again no more often: the layer stops where its MLP begins.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import nn
from torch.autograd.function import FunctionCtx
from torch.utils.checkpoint import get_device_states, set_device_states

TILE = 512
"""Positions: enough of them to keep matrix products efficient."""
_MLP = {"gate_proj", "up_proj", "down_proj"}

Forward = Callable[[torch.Tensor], torch.Tensor]


@contextmanager
def lean(model: nn.Module, autocast: bool) -> Iterator[None]:
    """Within it, a step of the adapted model takes less memory; its gradients are equal to rounding.

    Args:
        autocast: whether the forward is under it. PEFT would copy a LoRA layer's input to float32 first.
    """
    from peft.tuners.lora import LoraLayer

    with ExitStack() as stack:
        for module in model.modules():
            if autocast and isinstance(module, LoraLayer) and not module.lora_variant:  # DoRA's norms want float32
                stack.callback(setattr, module, "cast_input_dtype_enabled", module.cast_input_dtype_enabled)
                module.cast_input_dtype_enabled = False
            mlp = getattr(module, "mlp", None) if getattr(module, "gradient_checkpointing", False) else None
            if mlp is not None and mlp._modules.keys() >= _MLP:
                stack.callback(mlp.__dict__.pop, "forward")
                mlp.forward = functools.partial(_in_tiles, mlp, mlp.forward)
        yield


def _in_tiles(mlp: nn.Module, forward: Forward, x: torch.Tensor) -> torch.Tensor:
    """What an MLP makes of x [..., positions, width]."""
    if not torch.is_grad_enabled():
        return _joined(forward, x)
    trained = [parameter for parameter in mlp.parameters() if parameter.requires_grad]
    result: torch.Tensor = _Tiles.apply(forward, _Kept.apply(x), *trained)
    return result


def _joined(forward: Forward, x: torch.Tensor) -> torch.Tensor:
    return torch.cat([forward(tile) for tile in _tiles(x)], 1).view_as(x)


class _Kept(torch.autograd.Function):
    """Keeps a tensor where checkpointing sees it: the last that it needs of a layer."""

    @staticmethod
    def forward(ctx: FunctionCtx, x: torch.Tensor) -> torch.Tensor:
        ctx.save_for_backward(x)
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> torch.Tensor:
        return gradient


class _Tiles(torch.autograd.Function):
    """A function of single positions, a tile of them at a time; run again in the backward pass."""

    @staticmethod
    def forward(ctx: Any, forward: Forward, kept: torch.Tensor, *trained: nn.Parameter) -> torch.Tensor:
        ctx.forward, ctx.trained, ctx.surroundings = forward, trained, _Surroundings(kept)
        ctx.kept = kept.grad_fn if kept.requires_grad else kept.detach()
        return _joined(forward, kept)

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        x = ctx.kept if isinstance(ctx.kept, torch.Tensor) else ctx.kept.saved_tensors[0]
        sums: list[torch.Tensor | None] = [None] * len(ctx.trained)
        of_x = []
        with ctx.surroundings.again(), torch.enable_grad():
            for tile, own in zip(_tiles(x), _tiles(gradient), strict=True):
                tile = tile.detach().requires_grad_()
                found = torch.autograd.grad(ctx.forward(tile), [tile, *ctx.trained], own, allow_unused=True)
                of_x.append(found[0])
                sums = [
                    one if so_far is None else so_far.add_(one) for so_far, one in zip(sums, found[1:], strict=True)
                ]
        return None, torch.cat(of_x, 1).view_as(x), *sums


def _tiles(x: torch.Tensor) -> tuple[torch.Tensor, ...]:
    return x.reshape(1, -1, x.shape[-1]).split(TILE, 1)


class _Surroundings:
    """Random states and autocast, as they were in a forward."""

    def __init__(self, x: torch.Tensor) -> None:
        self.device = x.device.type
        self.cpu_state, self.states = torch.get_rng_state(), get_device_states(x)
        self.autocast = torch.is_autocast_enabled(self.device), torch.get_autocast_dtype(self.device)

    @contextmanager
    def again(self) -> Iterator[None]:
        """Within it, they are as they were then."""
        devices, states = self.states
        enabled, dtype = self.autocast
        with torch.random.fork_rng(devices, device_type=self.device if devices else "cuda"):
            torch.set_rng_state(self.cpu_state)
            set_device_states(devices, states)
            with torch.autocast(self.device, dtype, enabled):
                yield
