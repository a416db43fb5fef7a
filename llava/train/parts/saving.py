"""What a run writes: full models, projector-only checkpoints, LoRA adapters. Safe formats only.

File names are LLaVA-NeXT's with `.safetensors` in place of `.bin`; `llava.model.builder` reads both.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import nn

from llava.errors import InputError
from llava.train.parts.tunable import LANGUAGE_MODEL, PROJECTOR, parts_of

PROJECTOR_FILE = "mm_projector.safetensors"
NON_LORA_FILE = "non_lora_trainables.safetensors"


def save_full(model: Any, folder: Path, state_dict: dict[str, torch.Tensor] | None = None) -> None:
    """config.json, generation_config.json and model.safetensors (shards and an index when large)."""
    model.save_pretrained(folder, state_dict=state_dict)


def save_adapter(model: nn.Module, folder: Path, state_dict: dict[str, torch.Tensor] | None = None) -> None:
    """config.json and the projector's weights, with whatever else the projector needs to be used again.

    That is `image_newline`, and the embedding table when `<im_start>` and `<im_end>` were added to it.
    """
    _save_config(model, folder)
    save_file(_contiguous(adapter_tensors(model, state_dict)), folder / PROJECTOR_FILE, metadata={"format": "pt"})


def adapter_tensors(model: Any, state_dict: dict[str, torch.Tensor] | None = None) -> dict[str, torch.Tensor]:
    """Full name -> tensor of what a projector-only checkpoint holds."""
    values = state_dict if state_dict is not None else model.state_dict()
    inner = model.get_model()
    also = {id(inner.image_newline)} if hasattr(inner, "image_newline") else set()
    if getattr(model.config, "mm_use_im_start_end", False):
        also |= {id(p) for p in model.get_input_embeddings().parameters()}
    return {name: values[name] for part, name, p in parts_of(model) if part == PROJECTOR or id(p) in also}


def save_lora(model: Any, folder: Path, state_dict: dict[str, torch.Tensor] | None = None) -> None:
    """The LoRA adapter as PEFT writes it, the other trained weights, and the LLaVA config."""
    model.save_pretrained(folder, state_dict=state_dict)
    _save_config(model.get_base_model(), folder)
    if model.generation_config is not None:
        model.generation_config.save_pretrained(folder)
    save_file(_contiguous(non_lora_tensors(model)), folder / NON_LORA_FILE, metadata={"format": "pt"})


def adapter_names(model: nn.Module) -> frozenset[str]:
    """Names of the adapter's weights of a PEFT model; empty for any other model."""
    if not is_peft(model):
        return frozenset()
    from peft.tuners.tuners_utils import BaseTunerLayer

    ids: set[int] = set()
    for module in model.modules():
        if isinstance(module, BaseTunerLayer):
            for name in module.adapter_layer_names:
                ids |= {id(p) for p in getattr(module, name, nn.Module()).parameters()}
    return frozenset(name for name, p in model.named_parameters() if id(p) in ids)


def non_lora_tensors(model: Any) -> dict[str, torch.Tensor]:
    """Trained weights of a PEFT model outside its adapter, and `image_newline`, which readers cannot make up.

    Names are those in a model whose layers are not wrapped, as `load_tensors` and other readers expect them.
    """
    adapter = adapter_names(model)
    newline = id(getattr(model.get_model(), "image_newline", None)) if hasattr(model, "get_model") else None
    return {
        _name_outside_lora(name): p.detach()
        for part, name, p in parts_of(model)
        if name not in adapter and (p.requires_grad or (part == LANGUAGE_MODEL and id(p) == newline))
    }


def load_tensors(model: nn.Module, file: Path) -> None:
    """Copy the tensors of `file` into the parameters of the same names; unknown names raise `InputError`."""
    parameters = {_name_outside_lora(name): parameter for name, parameter in model.named_parameters()}
    tensors = load_file(file)
    unknown = sorted(set(tensors) - set(parameters))
    if unknown:
        raise InputError(f"{file} holds {unknown[0]!r}, which this model does not have; was it made with other flags?")
    with torch.no_grad():
        for name, tensor in tensors.items():
            parameters[name].copy_(tensor)


def is_peft(model: nn.Module) -> bool:
    """Whether `model` is PEFT's wrapper, without importing PEFT."""
    return hasattr(model, "peft_config")


def _name_outside_lora(name: str) -> str:
    """`q_proj.base_layer.bias`, as it is called inside PEFT's layer, is `q_proj.bias`."""
    return name.replace(".base_layer.", ".")


def _save_config(model: Any, folder: Path) -> None:
    """config.json where `model.save_pretrained`, which names the class in it, does not write the weights."""
    model.config.architectures = [type(model).__name__]
    model.config.save_pretrained(folder)


def _contiguous(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
