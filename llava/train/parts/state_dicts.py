"""Functions that other people's training scripts import from LLaVA-NeXT's train.py."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from torch import nn

from llava.train.parts import saving

NamedParameters = Iterable[tuple[str, nn.Parameter]]


def maybe_zero_3(param: torch.Tensor, ignore_status: bool = False, name: str | None = None) -> torch.Tensor:
    """A CPU copy of a parameter; one that DeepSpeed ZeRO-3 keeps in pieces is gathered first."""
    return saving.whole(param).cpu().clone()


def get_peft_state_maybe_zero_3(named_params: NamedParameters, bias: str) -> dict[str, torch.Tensor]:
    """LoRA weights, with the biases that `bias` (none, all, lora_only) asks for."""
    named = dict(named_params)
    if bias not in ("none", "all", "lora_only"):
        raise ValueError(f"bias is {bias!r}; allowed are none, all and lora_only")
    chosen = {name for name in named if "lora_" in name}
    if bias == "all":
        chosen |= {name for name in named if name.rsplit(".", 1)[-1] == "bias"}
    elif bias == "lora_only":
        owners = {name.split("lora_")[0] for name in chosen}
        # newer PEFT keeps the layer, bias included, one level further down
        biases = {owner + bias for owner in owners for bias in ("bias", "base_layer.bias")}
        chosen |= biases & named.keys()
    return {name: maybe_zero_3(named[name]) for name in named if name in chosen}


def get_peft_state_non_lora_maybe_zero_3(
    named_params: NamedParameters, require_grad_only: bool = True
) -> dict[str, torch.Tensor]:
    """Weights outside the LoRA adapter, by default the trained ones."""
    return {
        name: maybe_zero_3(parameter)
        for name, parameter in named_params
        if "lora_" not in name and (parameter.requires_grad or not require_grad_only)
    }


def get_mm_adapter_state_maybe_zero_3(
    named_params: NamedParameters, keys_to_match: Iterable[str]
) -> dict[str, torch.Tensor]:
    """Weights whose name contains one of the given words, e.g. mm_projector."""
    keys = tuple(keys_to_match)
    return {name: maybe_zero_3(p) for name, p in named_params if any(key in name for key in keys)}


def safe_save_model_for_hf_trainer(trainer: Any, output_dir: str) -> None:
    """Save what the run trained: the whole model, or the projector alone where only that was tuned.

    With an `output_dir` that is itself called `checkpoint-N`, the projector goes to `../mm_projector/`.
    """
    folder = Path(output_dir)
    trainer.save_model(output_dir)
    projector = folder / saving.PROJECTOR_FILE
    if folder.name.startswith("checkpoint-") and projector.exists():
        target = folder.parent / "mm_projector" / f"{folder.name}.safetensors"
        target.parent.mkdir(parents=True, exist_ok=True)
        projector.rename(target)
