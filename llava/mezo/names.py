"""Numbers and names of the trained parameters, and which of them take no weight decay.

A parameter's number selects its noise, so the numbering has to be the same in every process, for every wrapper and
for every order of the parameter groups: it is the position in the sorted list of canonical names.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence

from torch import nn

WRAPPERS = ("module", "_orig_mod")


def unwrap(model: nn.Module) -> nn.Module:
    """The model inside data-parallel (`.module`) and torch.compile (`._orig_mod`) wrappers.

    A wrapper is recognised by its structure: it has this one child and no parameter of its own. Other levels that
    belong to the model's architecture stay, PEFT's `base_model.model` among them: its checkpoints have it too.
    """
    while True:
        children = dict(model.named_children())
        if len(children) != 1 or next(iter(model._parameters), None) is not None:
            return model
        (name, child), *_ = children.items()
        if name not in WRAPPERS:
            return model
        model = child


def canonical_names(model: nn.Module) -> dict[nn.Parameter, str]:
    """Every parameter of the model with its canonical name: the first, sorted, of the names it goes by."""
    names: dict[nn.Parameter, str] = {}
    for name, parameter in unwrap(model).named_parameters(remove_duplicate=False):
        if parameter not in names or name < names[parameter]:
            names[parameter] = name
    return names


def parameters_by_name(model: nn.Module) -> dict[str, nn.Parameter]:
    """Canonical name -> parameter, sorted by name: the trained ones among them are in the order of their numbers."""
    named = {name: parameter for parameter, name in canonical_names(model).items()}
    return dict(sorted(named.items()))


def numbered(model: nn.Module, parameters: Iterable[nn.Parameter]) -> dict[nn.Parameter, str]:
    """The given parameters in the order of their canonical names; the position is the parameter's number.

    A parameter that the model does not hold raises ValueError.
    """
    names = canonical_names(model)
    chosen: dict[nn.Parameter, str] = {}
    for position, parameter in enumerate(parameters):
        if parameter not in names:
            raise ValueError(
                f"parameter {position} of the groups, of shape {tuple(parameter.shape)}, is not in the model; "
                "build the groups from the very model that is given to MeZO"
            )
        chosen[parameter] = names[parameter]
    return dict(sorted(chosen.items(), key=lambda item: item[1]))


def names_in_files(model: nn.Module) -> dict[nn.Parameter, list[str]]:
    """The names that a checkpoint's files may hold each parameter under: its own, tied ones, those that PEFT gives."""
    names: dict[nn.Parameter, list[str]] = {}
    for own, parameter in unwrap(model).named_parameters(remove_duplicate=False):
        outside_lora = own.replace(".base_layer.", ".")
        without = own.replace(".default.", ".")
        known = [own, outside_lora, without, own.removesuffix(".default"), without.removesuffix(".weight")]
        if own.startswith("prompt_encoder."):  # PEFT's virtual tokens
            known.append("prompt_embeddings")
        names.setdefault(parameter, []).extend(dict.fromkeys(known))
    return names


def names_hash(names: Sequence[str]) -> str:
    """sha256 (hexadecimal) of the sorted names, one a line: two runs with the same hash number alike."""
    return hashlib.sha256("".join(f"{name}\n" for name in names).encode()).hexdigest()


def no_decay_names(model: nn.Module) -> set[str]:
    """Names (of `model.named_parameters()`) that take no weight decay: norms, biases, everything of one dimension.

    Decided by structure, never by a part of the name: a parameter of at most one dimension is a bias, a norm's gain or
    a single vector such as LLaVA's `image_newline`; a norm module of torch (LayerNorm, GroupNorm, RMSNorm, ...)
    exempts all it owns; so does any other module without children whose gain, called `weight`, has one dimension, as
    the RMSNorm classes of transformers have it. Tied names are all listed.
    """
    exempt: set[nn.Parameter] = set()
    for module in model.modules():
        owned = [p for p in module._parameters.values() if p is not None]
        exempt.update(owned if _is_norm(module) else (p for p in owned if p.dim() <= 1))
        bias = module._parameters.get("bias")
        if bias is not None:
            exempt.add(bias)
    return {name for name, p in model.named_parameters(remove_duplicate=False) if p in exempt}


_NORMS: tuple[type[nn.Module], ...] = (
    nn.LayerNorm,
    nn.GroupNorm,
    nn.modules.batchnorm._NormBase,
    nn.LocalResponseNorm,
    *([nn.RMSNorm] if hasattr(nn, "RMSNorm") else []),
)


def _is_norm(module: nn.Module) -> bool:
    if isinstance(module, _NORMS):
        return True
    weight = module._parameters.get("weight")
    return weight is not None and weight.dim() <= 1 and not any(True for _ in module.children())
