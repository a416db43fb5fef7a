"""LoRA on the language model: which layers, and how the model is wrapped."""

from __future__ import annotations

from typing import Any

from torch import nn

# PEFT matches last name parts anywhere in the model; these parts of it are not the language model.
_OUTSIDE = {"mm_projector", "vision_tower", "vision_resampler", "lm_head"}
_NOT_ADAPTED = r".*\.(vision_tower|mm_projector)\..*"


def find_all_linear_names(model: nn.Module) -> list[str]:
    """Last name parts of the language model's linear layers (q_proj, down_proj, ...), the output head excepted."""
    linear = [name.split(".") for name, module in model.named_modules() if isinstance(module, nn.Linear)]
    return sorted({parts[-1] for parts in linear if not _OUTSIDE & set(parts)})


def add_lora(model: nn.Module, args: Any) -> nn.Module:
    """`model` wrapped by PEFT with fresh LoRA weights, in float32 as in LLaVA-NeXT, on the language model's layers."""
    from peft import LoraConfig, get_peft_model, prepare_model_for_kbit_training

    if args.bits != 16 and args.trainer_mode != "zo":  # forwards alone need no weights in float32
        model = prepare_model_for_kbit_training(model, use_gradient_checkpointing=args.gradient_checkpointing)
    config = LoraConfig(
        r=args.lora_r,
        lora_alpha=args.lora_alpha,
        target_modules=find_all_linear_names(model),
        exclude_modules=_NOT_ADAPTED,
        lora_dropout=args.lora_dropout,
        bias=args.lora_bias,
        task_type="CAUSAL_LM",
    )
    # DeepSpeed ZeRO-3 puts all that is trained into one buffer: the adapter takes the dtype of the weights it changes
    return get_peft_model(model, config, autocast_adapter_dtype=not zero_3(args))


def zero_3(args: Any) -> bool:
    """Whether a run with these training arguments keeps its weights in pieces, by DeepSpeed's ZeRO stage 3."""
    config = getattr(args, "hf_deepspeed_config", None)
    return config is not None and bool(config.is_zero3())
