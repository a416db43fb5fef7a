"""Parameter groups of the optimizer: a learning rate per part, weight decay where it belongs.

Groups come in LLaVA-NeXT's order: the rest with and without decay, then the projector's two when it has
a learning rate of its own, then the vision tower's two. Empty groups stay, since a saved optimizer state
counts them.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from torch import nn
from torch.optim import Optimizer
from transformers.models.llama.modeling_llama import LlamaRMSNorm

from llava.train.parts.tunable import RATES, parts_of

Groups = list[dict[str, Any]]
"""Of an optimizer, each with its `params`."""

# What LLaVA-NeXT exempts besides biases. Qwen2's RMSNorm is a class of its own and is decayed there;
# MeZOTrainer exempts every norm (llava.mezo decides that for itself).
NORMS_WITHOUT_DECAY = (nn.LayerNorm, LlamaRMSNorm)


def names_without_decay(model: nn.Module) -> set[str]:
    """Names of the parameters that weight decay leaves alone in regular training: biases and LayerNorms."""
    return {
        f"{module_name}.{name}" if module_name else name
        for module_name, module in model.named_modules()
        for name, _ in module.named_parameters(recurse=False)
        if name == "bias" or isinstance(module, NORMS_WITHOUT_DECAY)
    }


def parameter_groups(model: nn.Module, args: Any) -> Groups:
    """Groups for a torch optimizer, each with `params`, `weight_decay` and, for a part of its own, `lr`."""
    own_rates = {part: getattr(args, flag) for part, flag in RATES.items()}
    exempt = names_without_decay(model)
    keys: list[tuple[str | None, bool]] = [(None, True), (None, False)]
    for part, rate in own_rates.items():
        if rate is not None:
            keys += [(part, True), (part, False)]
    members: dict[tuple[str | None, bool], list[nn.Parameter]] = {key: [] for key in keys}
    for part, name, parameter in parts_of(model):
        if parameter.requires_grad:
            owner = part if own_rates.get(part) is not None else None
            members[owner, name not in exempt].append(parameter)
    groups = []
    for owner, decayed in keys:
        group: dict[str, Any] = {
            "params": members[owner, decayed],
            "weight_decay": args.weight_decay if decayed else 0.0,
        }
        if owner is not None:
            group["lr"] = own_rates[owner]
        groups.append(group)
    return groups


def numbered(optimizer: Optimizer, state_dict: Mapping[str, Any]) -> Iterator[tuple[int, nn.Parameter]]:
    """An optimizer's parameters, each with the number that it has in a saved state of such an optimizer."""
    for saved, group in zip(state_dict["param_groups"], optimizer.param_groups, strict=True):
        yield from zip(saved["params"], group["params"], strict=True)
