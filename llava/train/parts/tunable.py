"""Which parameters a run trains: by parts of the model, layers, matrices alone, legacy freeze flags, LoRA.

The parts of a LLaVA model are disjoint: the projector, the vision tower, and everything else (the
language model with its embeddings, norms and head, and `image_newline`). Parameters are assigned to a
part by the module that owns them, never by their names.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Iterator
from typing import Any

from torch import nn

from llava.errors import InputError

logger = logging.getLogger(__name__)

LANGUAGE_MODEL = "mm_language_model"
PROJECTOR = "mm_mlp_adapter"
VISION_TOWER = "mm_vision_tower"
RESAMPLER = "mm_vision_resampler"
PARTS = (LANGUAGE_MODEL, PROJECTOR, VISION_TOWER)
RATES = {PROJECTOR: "mm_projector_lr", VISION_TOWER: "mm_vision_tower_lr"}
"""Flags of the parts that may have a rate of their own."""


def parse_parts(value: str, flag: str = "mm_tunable_parts") -> frozenset[str]:
    """The comma list of `--mm_tunable_parts`, or of another flag, as a set; unknown names raise `InputError`."""
    parts = [name.strip() for name in value.split(",") if name.strip()]
    for name in parts:
        if name == RESAMPLER:
            raise InputError(f"--{flag} {RESAMPLER}: resamplers are not supported; allowed: {', '.join(PARTS)}")
        if name not in PARTS:
            raise InputError(f"--{flag}: unknown part {name!r}; allowed: {', '.join(PARTS)}")
    if not parts:
        raise InputError(f"--{flag} is empty; allowed: {', '.join(PARTS)}")
    return frozenset(parts)


def parse_layers(value: str) -> tuple[int, int | None]:
    """The first and the last layer of `--tunable_layers`, None for that of the model. `InputError`: it is neither."""
    match = re.fullmatch(r"\s*(\d+)\s*(-\s*(\d*)\s*)?", value, re.ASCII)
    if match is None:
        raise InputError(f"--tunable_layers {value}: give numbers of layers, from 0 on, such as 12-23, 12- or 20")
    first = int(match[1])
    last = first if match[2] is None else int(match[3]) if match[3] else None
    if last is not None and last < first:
        raise InputError(f"--tunable_layers {value}: the first number must not be above the second")
    return first, last


def vision_modules(model: Any) -> dict[str, nn.Module]:
    """Vision tower and projector by part, in the order in which images pass them; empty for a plain language model.

    Args:
        model: a LLaVA model, PEFT's wrapper of one, or a plain language model.
    """
    if not hasattr(model, "get_model"):
        return {}
    inner = model.get_model()
    modules = {VISION_TOWER: inner.get_vision_tower(), PROJECTOR: getattr(inner, "mm_projector", None)}
    return {part: module for part, module in modules.items() if module is not None}


def parts_of(model: nn.Module) -> Iterator[tuple[str, str, nn.Parameter]]:
    """(part, name, parameter) for every parameter; in a plain language model all belong to one part."""
    owner_of = {id(p): part for part, module in vision_modules(model).items() for p in module.parameters()}
    for name, parameter in model.named_parameters():
        yield owner_of.get(id(parameter), LANGUAGE_MODEL), name, parameter


def adapter_only(args: Any) -> bool:
    """Whether a run trains the projector alone, without LoRA: only the projector is then saved.

    Args:
        args: any object with `mm_tunable_parts`, `tune_mm_mlp_adapter` and `lora_enable`.
    """
    if getattr(args, "lora_enable", False):
        return False
    if getattr(args, "mm_tunable_parts", None) is not None:
        return parse_parts(args.mm_tunable_parts) == {PROJECTOR}
    return bool(getattr(args, "tune_mm_mlp_adapter", False))


def select_trainable(model: nn.Module, model_args: Any, training_args: Any, adapter: frozenset[str]) -> None:
    """Set `requires_grad` of every parameter as the flags say.

    Args:
        model: LLaVA model, possibly wrapped by PEFT.
        adapter: names of the adapter's weights, which are always trained; empty without one. With one the
            language model's own weights stay frozen, but for the biases that `--lora_bias` asks for.
    """
    parts = parts_of_flags(model_args, training_args)
    absent = sorted(parts - {LANGUAGE_MODEL} - vision_modules(model).keys())
    if absent and model_args.mm_tunable_parts is not None:
        raise InputError(
            f"--mm_tunable_parts {model_args.mm_tunable_parts}: this model has no {absent[0]}: set --vision_tower, "
            "or name the parts that it has"
        )
    frozen = _frozen_names(model, model_args)
    if getattr(model.config, "mm_use_im_start_end", False) and LANGUAGE_MODEL not in parts:
        logger.warning(
            "<im_start> and <im_end> are new words whose embeddings are not trained, since --mm_tunable_parts lacks %s",
            LANGUAGE_MODEL,
        )
    for part, name, parameter in parts_of(model):
        chosen = part in parts and name not in frozen
        if adapter and part == LANGUAGE_MODEL:
            chosen = parameter.requires_grad  # as PEFT has it, which goes by --lora_bias
        trainable = chosen or name in adapter
        if parameter.is_floating_point():
            parameter.requires_grad_(trainable)
        elif trainable and name not in adapter:
            raise InputError(
                f"{name} is quantised (--bits {training_args.bits}) and cannot be trained itself: "
                "add --lora_enable True, or load the base with --bits 16"
            )


def trained_parts(model: nn.Module, kind: str, adapter: frozenset[str]) -> str:
    """What a model trains, by its parts: "adapter lora (mm_language_model), mm_mlp_adapter".

    Args:
        model: after `select_trainable`.
        kind: of the adapter, as in `--adapter`.
        adapter: names of its weights; empty without one.
    """
    adapted = {part for part, name, _ in parts_of(model) if name in adapter}
    own = {part for part, name, p in parts_of(model) if p.requires_grad and name not in adapter}
    words = [f"adapter {kind} ({', '.join(part for part in PARTS if part in adapted)})"] if adapter else []
    # what --lora_bias asks for is all that the language model itself has to train beside an adapter
    biases = {LANGUAGE_MODEL: f"biases of {LANGUAGE_MODEL}"} if adapter else {}
    return ", ".join([*words, *(biases.get(part, part) for part in PARTS if part in own)])


def _frozen_names(model: nn.Module, args: Any) -> set[str]:
    """Names of the weights that stay as they are, whatever parts are trained."""
    frozen: set[str] = set()
    # a legacy run without freeze_backbone leaves the backbone on; with it, an untied head stays on too
    if args.mm_tunable_parts is None and args.freeze_backbone:
        frozen |= _backbone_names(model)
    if args.tunable_layers is not None:
        inside = _inside_layers(model, args.tunable_layers)
        frozen |= {name for part, name, p in parts_of(model) if part == LANGUAGE_MODEL and id(p) not in inside}
    if args.freeze_vectors:
        frozen |= {name for name, p in model.named_parameters() if p.dim() < 2}
    return frozen


def _inside_layers(model: nn.Module, chosen: str) -> set[int]:
    """Ids of the parameters within the decoder layers that `--tunable_layers` names. `InputError`: it has others."""
    vision = {inner for module in vision_modules(model).values() for inner in module.modules()}
    lists = [m for m in model.modules() if isinstance(m, nn.ModuleList) and m not in vision]
    layers = list(max(lists, key=len, default=[]))
    first, last = parse_layers(chosen)
    if max(first, last or 0) >= len(layers):
        raise InputError(
            f"--tunable_layers {chosen}: the language model has {len(layers)} layers, 0 to {len(layers) - 1}"
        )
    return {id(p) for layer in layers[first : None if last is None else last + 1] for p in layer.parameters()}


def parts_of_flags(model_args: Any, training_args: Any) -> frozenset[str]:
    """What `--mm_tunable_parts` or the legacy flags name; with an adapter the language model stands for that.

    Raises:
        InputError: an unknown part.
    """
    if model_args.mm_tunable_parts is not None:
        return parse_parts(model_args.mm_tunable_parts)
    if model_args.tune_mm_mlp_adapter:
        return frozenset({PROJECTOR})
    parts = {LANGUAGE_MODEL}
    if not training_args.freeze_mm_mlp_adapter:
        parts.add(PROJECTOR)
    if model_args.unfreeze_mm_vision_tower:
        parts.add(VISION_TOWER)
    return frozenset(parts)


def _backbone_names(model: Any) -> frozenset[str]:
    """Names of the language model's inner weights: not `image_newline`, not an untied head."""
    inner = model.get_model() if hasattr(model, "get_model") else model.base_model
    newline = id(getattr(inner, "image_newline", None))
    inside = {id(p) for p in inner.parameters()} - {newline}
    return frozenset(n for part, n, p in parts_of(model) if part == LANGUAGE_MODEL and id(p) in inside)
