"""Adapters, of PEFT and of ours: which kinds, on which layers, and how the model is wrapped."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

from torch import nn

from llava.errors import InputError
from llava.model.adapter_kinds import FROM_WEIGHTS, LORA_FAMILY, VIRTUAL_TOKENS
from llava.model.quantised import keep_dtypes, ready_for_adapters
from llava.train.parts.tunable import LANGUAGE_MODEL, VISION_TOWER, parse_parts, vision_modules

logger = logging.getLogger(__name__)

# PEFT matches last name parts anywhere in the model; these parts of it are not the language model.
_OUTSIDE = {"mm_projector", "vision_tower", "vision_resampler", "lm_head"}
_NOT_ADAPTED = r".*\.(vision_tower|mm_projector)\..*"
# What IA3 scales: keys and values at their output, the MLP's inner features at the input of its last layer.
_SCALED, _SCALED_AT_INPUT = ("k_proj", "v_proj", "down_proj", "fc2"), ("down_proj", "fc2")
# The last layers of attention and MLP, in language models and in SigLIP and CLIP towers.
_LAST_OF_BLOCKS = ("o_proj", "out_proj", "down_proj", "fc2")
_NORMS_OF_LAYERS = ("input_layernorm", "layer_norm1")


def find_all_linear_names(model: nn.Module) -> list[str]:
    """Last name parts of the language model's linear layers (q_proj, down_proj, ...), the output head excepted."""
    found = [name.split(".") for name, module in model.named_modules() if isinstance(module, nn.Linear)]
    return sorted({parts[-1] for parts in found if not _OUTSIDE & set(parts)})


def add_adapter(model: nn.Module, args: Any) -> nn.Module:
    """`model` wrapped by PEFT with a fresh adapter; LoRA's weights in float32, as in LLaVA-NeXT.

    Args:
        args: training arguments; `args.adapter` is one of `ADAPTERS`, `args.adapter_targets` says where it goes.

    Raises:
        InputError: one that starts from weights which DeepSpeed keeps in pieces, more of it than the model has room
            for, or a rank that no layer has.
    """
    from peft import get_peft_model

    from llava.model.tuners import residual, virtual_tokens

    if args.adapter in FROM_WEIGHTS and zero_3(args):
        raise InputError(f"--adapter {args.adapter} needs whole weights, which --deepspeed keeps in pieces with ZeRO-3")
    if args.adapter in VIRTUAL_TOKENS:
        settings: Any = model.config
        _check_positions(args, settings.max_position_embeddings)
    # Without PEFT's prepare_model_for_kbit_training: it makes float32 of all that is not quantised, word embeddings and
    # tower included, more than all of a small model. Norms and losses are computed in float32 anyway.
    model = ready_for_adapters(model)
    # DeepSpeed ZeRO-3 puts all that is trained into one buffer: the adapter takes the dtype of the weights it changes
    config = _config(model, args)
    wrapped: Any = get_peft_model(model, config, autocast_adapter_dtype=not zero_3(args))
    base = str(config.base_model_name_or_path or "")
    if base and Path(base).is_dir():
        config.base_model_name_or_path = str(Path(base).absolute())  # found from anywhere
    if args.adapter in FROM_WEIGHTS:
        residual.start_from_weights(wrapped, args.adapter)
    if args.adapter == "prefix":
        virtual_tokens.prefix_from_words(wrapped)
    if args.adapter in VIRTUAL_TOKENS:
        return virtual_tokens.VirtualTokensModel.of(wrapped)
    return keep_dtypes(wrapped)


def _check_positions(args: Any, most: int) -> None:
    tokens = args.adapter_tokens
    if tokens >= most:
        raise InputError(f"--adapter_tokens {tokens}: they take positions of the text, and the model has {most} in all")
    if tokens + args.model_max_length > most:
        logger.warning(
            "--adapter_tokens %d and --model_max_length %d are more than the model's %d positions: it is not made for "
            "samples of more than %d tokens, and does not answer longer prompts",
            *(tokens, args.model_max_length, most, most - tokens),
        )


def _config(model: nn.Module, args: Any) -> Any:
    if args.adapter in VIRTUAL_TOKENS:
        return _virtual_tokens(args)
    return _lora(model, args) if args.adapter in LORA_FAMILY else _in_layers(model, args)


def _virtual_tokens(args: Any) -> Any:
    from peft import PrefixTuningConfig, PromptTuningConfig, PromptTuningInit

    common: dict[str, Any] = {"task_type": "CAUSAL_LM", "num_virtual_tokens": args.adapter_tokens}
    if args.adapter == "prefix":
        return PrefixTuningConfig(**common)
    return PromptTuningConfig(prompt_tuning_init=PromptTuningInit.SAMPLE_VOCAB, **common)


def _lora(model: nn.Module, args: Any) -> Any:
    from peft import LoraConfig

    if args.adapter not in FROM_WEIGHTS:  # which look at the smallest layer
        _check_rank(model, args)
    return LoraConfig(
        r=args.lora_r,
        lora_alpha=args.lora_alpha,
        lora_dropout=args.lora_dropout,
        bias=args.lora_bias,
        use_rslora=args.adapter == "rslora",
        use_dora=args.adapter == "dora",
        **_where(model, args, lambda name, module: isinstance(module, nn.Linear)),
    )


def _check_rank(model: nn.Module, args: Any) -> None:
    found = _modules(model, parse_parts(args.adapter_targets, "adapter_targets")).values()
    shapes = [(m.in_features, m.out_features) for m in found if isinstance(m, nn.Linear)]
    largest = max(shapes, key=min, default=None)
    if largest is not None and args.lora_r > min(largest):
        raise InputError(
            f"--adapter_r {args.lora_r}: no change that --adapter {args.adapter} makes has such a rank, and the layer "
            f"that can have most, of {largest[0]} inputs and {largest[1]} outputs, has {min(largest)}: give as many at "
            "most"
        )


def _in_layers(model: nn.Module, args: Any) -> Any:
    from peft import IA3Config, LNTuningConfig

    from llava.model.tuners.houlsby import HoulsbyConfig
    from llava.model.tuners.mora import MoraConfig

    if args.adapter == "ia3":
        where = _where(model, args, lambda name, module: name in _SCALED)
        inputs = [name for name in where["target_modules"] if name.split(".")[-1] in _SCALED_AT_INPUT]
        return IA3Config(feedforward_modules=inputs, **where)
    if args.adapter == "ln":
        norms = {type(m) for name, m in model.named_modules() if name.split(".")[-1] in _NORMS_OF_LAYERS}
        return LNTuningConfig(**_where(model, args, lambda name, module: type(module) in norms))
    if args.adapter == "mora":
        return MoraConfig(r=args.lora_r, **_where(model, args, lambda name, module: isinstance(module, nn.Linear)))
    return HoulsbyConfig(r=args.lora_r, **_where(model, args, lambda name, module: name in _LAST_OF_BLOCKS))


def _where(model: nn.Module, args: Any, chosen: Callable[[str, nn.Module], bool]) -> dict[str, Any]:
    """PEFT's settings for those modules of the targets that are `chosen` by last name part and module.

    On the language model alone these are last name parts, as LLaVA-NeXT has them; otherwise whole names.
    """
    targets = parse_parts(args.adapter_targets, "adapter_targets")
    found = _modules(model, targets)
    names = [name for name, module in found.items() if chosen(name.split(".")[-1], module)]
    common = {"task_type": "CAUSAL_LM"}
    if targets != {LANGUAGE_MODEL}:
        return {"target_modules": names, **common}
    return {"target_modules": sorted({n.split(".")[-1] for n in names}), "exclude_modules": _NOT_ADAPTED, **common}


def _modules(model: nn.Module, targets: frozenset[str]) -> dict[str, nn.Module]:
    """Modules by name in these parts of a model: of a tower its transformer layers, of a language model no head."""
    owner = {id(m): part for part, module in vision_modules(model).items() for m in module.modules()}
    found = {}
    for name, module in model.named_modules():
        part = owner.get(id(module), LANGUAGE_MODEL)
        in_body = part != LANGUAGE_MODEL or not _OUTSIDE & set(name.split("."))
        if part in targets and in_body and (part != VISION_TOWER or ".layers." in name):
            found[name] = module
    return found


def zero_3(args: Any) -> bool:
    """Whether a run with these training arguments keeps its weights in pieces, by DeepSpeed's ZeRO stage 3."""
    config = getattr(args, "hf_deepspeed_config", None)
    return config is not None and bool(config.is_zero3())
