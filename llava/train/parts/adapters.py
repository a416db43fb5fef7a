"""Adapters on the language model, of PEFT: which kinds, on which layers, and how the model is wrapped."""

from __future__ import annotations

from typing import Any

from torch import nn

from llava.model.quantised import keep_dtypes, ready_for_adapters

ADAPTERS = ("none", "lora", "rslora", "dora", "ia3", "ln")
"""Hu et al. 2021; Kalajdzievski 2023; Liu et al. 2024 (DoRA); Liu et al. 2022 (IA3); Zhao et al. 2023 (norms alone)."""

# PEFT matches last name parts anywhere in the model; these parts of it are not the language model.
_OUTSIDE = {"mm_projector", "vision_tower", "vision_resampler", "lm_head"}
_NOT_ADAPTED = r".*\.(vision_tower|mm_projector)\..*"
# What IA3 scales: keys and values at their output, the MLP's inner features at the input of its last layer.
_SCALED, _SCALED_AT_INPUT = ["k_proj", "v_proj", "down_proj"], ["down_proj"]


def find_all_linear_names(model: nn.Module) -> list[str]:
    """Last name parts of the language model's linear layers (q_proj, down_proj, ...), the output head excepted."""
    return _last_parts(model, nn.Linear)


def add_adapter(model: nn.Module, args: Any) -> nn.Module:
    """`model` wrapped by PEFT with a fresh adapter on the language model's layers; LoRA's in float32, as in LLaVA-NeXT.

    Args:
        args: training arguments; `args.adapter` is one of `ADAPTERS`.
    """
    from peft import get_peft_model

    # PEFT's preparation for a base in 4 or 8 bits would cast tower, projector, embeddings and head to float32
    model = ready_for_adapters(model)
    # DeepSpeed ZeRO-3 puts all that is trained into one buffer: the adapter takes the dtype of the weights it changes
    return keep_dtypes(get_peft_model(model, _config(model, args), autocast_adapter_dtype=not zero_3(args)))


def _config(model: nn.Module, args: Any) -> Any:
    from peft import IA3Config, LNTuningConfig, LoraConfig

    where: dict[str, Any] = {"exclude_modules": _NOT_ADAPTED, "task_type": "CAUSAL_LM"}
    if args.adapter == "ia3":
        return IA3Config(target_modules=_SCALED, feedforward_modules=_SCALED_AT_INPUT, **where)
    if args.adapter == "ln":
        norms = {type(module) for name, module in model.named_modules() if name.endswith("input_layernorm")}
        return LNTuningConfig(target_modules=_last_parts(model, tuple(norms)), **where)
    return LoraConfig(
        r=args.lora_r,
        lora_alpha=args.lora_alpha,
        target_modules=find_all_linear_names(model),
        lora_dropout=args.lora_dropout,
        bias=args.lora_bias,
        use_rslora=args.adapter == "rslora",
        use_dora=args.adapter == "dora",
        **where,
    )


def _last_parts(model: nn.Module, kinds: type | tuple[type, ...]) -> list[str]:
    """Last name parts of the language model's modules of these classes."""
    found = [name.split(".") for name, module in model.named_modules() if isinstance(module, kinds)]
    return sorted({parts[-1] for parts in found if not _OUTSIDE & set(parts)})


def zero_3(args: Any) -> bool:
    """Whether a run with these training arguments keeps its weights in pieces, by DeepSpeed's ZeRO stage 3."""
    config = getattr(args, "hf_deepspeed_config", None)
    return config is not None and bool(config.is_zero3())
