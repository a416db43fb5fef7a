"""Which trained weights are perturbed together: those of a layer, by the structure of the model.

A unit is a module whose forward needs its weights. A layer (an entry of a ModuleList with no ModuleList inside it) is
one unit with all that it owns, so that a call or two of a kernel serve all of it; any other module that owns trained
weights itself is a unit with these alone. Embedding matrices belong to none: of them rows are read (`tables.py`).
"""

from __future__ import annotations

from collections.abc import Container, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

LARGE_LAYER = 8 * 2**20
"""Bytes."""


@dataclass(frozen=True)
class Unit:
    """A module and the weights that are perturbed while its forward runs, in one group or two."""

    module: nn.Module
    groups: tuple[tuple[nn.Parameter, ...], ...]
    layer: bool
    """Whether it stands for all modules within it."""


def find_units(
    model: nn.Module, trained: Container[nn.Parameter], split: Container[nn.Module] = (), apart: bool = False
) -> dict[nn.Module, Unit]:
    """The units of a model by their modules; a shared weight is in all that own it.

    Args:
        split: layers that are no units: their modules are.
        apart: the weights of a layer's modules are groups of their own: more copies are made, and fewer are there.

    Raises:
        ValueError: a module reads its weights in a way that cannot be intercepted.
    """
    for name, module in model.named_modules():
        _refuse_compiled(name, module)
        if any(p in trained for p in owned_parameters(module).values()):
            _refuse_unreadable(name, module)
    layers = {layer for layer in layers_of(model) if layer not in split}
    within_layers = {inner for layer in layers for inner in layer.modules()} - layers
    units = {}
    for module in model.modules():
        if module in within_layers:
            continue
        members = module.modules() if module in layers else [module]
        owned = [p for m in members if not isinstance(m, nn.Embedding) for p in owned_parameters(m).values()]
        found = list(dict.fromkeys(p for p in owned if p in trained))
        if found:
            groups = _by_owner(module, found) if apart else _grouped(found)
            units[module] = Unit(module, groups if module in layers else (tuple(found),), module in layers)
    return units


def _by_owner(layer: nn.Module, parameters: Sequence[nn.Parameter]) -> tuple[tuple[nn.Parameter, ...], ...]:
    owner = {p: module for module in layer.modules() for p in owned_parameters(module).values()}
    groups: dict[nn.Module, list[nn.Parameter]] = {}
    for parameter in parameters:
        groups.setdefault(owner[parameter], []).append(parameter)
    return tuple(map(tuple, groups.values()))


def _grouped(parameters: Sequence[nn.Parameter]) -> tuple[tuple[nn.Parameter, ...], ...]:
    """All of a layer or, if it is large, its last matrix apart.

    That one is applied to the widest activations of a layer, those within its MLP. While these are made, the copies of
    all before it are gone already, and its own is not there yet: the peak of memory is hardly above that of a forward.
    """
    matrices = [p for p in parameters if p.dim() >= 2]
    if len(matrices) < 2 or sum(p.numel() * p.element_size() for p in parameters) < LARGE_LAYER:
        return (tuple(parameters),)
    return tuple(p for p in parameters if p is not matrices[-1]), (matrices[-1],)


def owned_parameters(module: nn.Module) -> dict[str, nn.Parameter]:
    """A module's own parameters by name, as they are stored."""
    stored: dict[str, Any] = getattr(module._parameters, "stored", module._parameters)
    return {name: p for name, p in stored.items() if p is not None}


def layers_of(model: nn.Module) -> Iterator[nn.Module]:
    """Entries of ModuleLists, the innermost of nested ones."""
    for module in model.modules():
        if isinstance(module, nn.ModuleList):
            for layer in module:
                if not any(isinstance(inner, nn.ModuleList) for inner in layer.modules()):
                    yield layer


def _refuse_compiled(name: str, module: nn.Module) -> None:
    if "_orig_mod" in module._modules or getattr(module, "_compiled_call_impl", None) is not None:
        raise ValueError(
            f"module {name or 'at the top'!r} is compiled by torch.compile, which reads weights in its own way; "
            "give MeZO the model before compilation and run the loss without it"
        )


def _refuse_unreadable(name: str, module: nn.Module) -> None:
    if isinstance(module, nn.DataParallel):
        raise ValueError("nn.DataParallel copies weights past the perturbation; use one process per device (torchrun)")
    if any(kind.__name__ == "FSDPModule" for kind in type(module).__mro__):
        raise ValueError(
            f"module {name or 'at the top'!r} is under FSDP2's fully_shard, whose hooks gather weights past the "
            "perturbation; give each process the whole model, or shards that no hook gathers"
        )
    if isinstance(module, nn.RNNBase):
        raise ValueError(f"module {name!r} ({type(module).__name__}) keeps a private list of its weights; freeze it")
    if isinstance(module, (nn.Embedding, nn.EmbeddingBag)) and module.max_norm is not None:
        raise ValueError(f"module {name!r} has max_norm, which writes its weights in the forward; set it to None")
    if isinstance(module, torch.jit.ScriptModule):
        raise ValueError(f"module {name!r} is a TorchScript module, which reads weights in its own way; freeze it")
