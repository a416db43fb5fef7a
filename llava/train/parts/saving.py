"""What a run writes: full models, projector-only checkpoints, adapters of PEFT, scales. Safe formats only.

File names are LLaVA-NeXT's with `.safetensors` in place of `.bin`; `llava.model.builder` reads both.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import nn

from llava.errors import InputError
from llava.mezo.durable import follow_umask
from llava.model.adapter_kinds import is_initial
from llava.model.base_mark import BASE_SHA256, base_mark
from llava.model.checkpoint_files import read_tensors, tensor_shapes
from llava.model.quantised_scales import SCALES_FILE
from llava.train.parts.tunable import LANGUAGE_MODEL, PROJECTOR, parts_of

PROJECTOR_FILE = "mm_projector.safetensors"
PROMPT = "prompt_encoder.default.embedding.weight"
"""What PEFT calls virtual tokens in its wrapper, and in files `prompt_embeddings`."""
NON_LORA_FILE = "non_lora_trainables.safetensors"


def save_full(model: Any, folder: Path, state_dict: dict[str, torch.Tensor] | None = None) -> None:
    """config.json, generation_config.json and model.safetensors (shards and an index when large)."""
    model.save_pretrained(folder, state_dict=None if state_dict is None else _once(model, state_dict))


def _once(model: nn.Module, state_dict: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Without further copies of tied weights, which DeepSpeed gathers as tensors that share nothing."""
    names = {name for name, _ in model.named_parameters()}  # of a tied one the first
    again = {name for name, _ in model.named_parameters(remove_duplicate=False)} - names
    return {name: tensor for name, tensor in state_dict.items() if name not in again}


def save_adapter(model: Any, folder: Path, state_dict: dict[str, torch.Tensor] | None = None) -> None:
    """config.json and the projector's weights, with whatever else the projector needs to be used again.

    That is `image_newline`, and the embedding table when `<im_start>` and `<im_end>` were added to it.
    """
    _save_config(model, folder)
    values = state_dict if state_dict is not None else model.state_dict()
    inner = model.get_model()
    also = {id(inner.image_newline)} if hasattr(inner, "image_newline") else set()
    if getattr(model.config, "mm_use_im_start_end", False):
        also |= {id(p) for p in model.get_input_embeddings().parameters()}
    tensors = {name: values[name] for part, name, p in parts_of(model) if part == PROJECTOR or id(p) in also}
    _save_tensors(tensors, folder / PROJECTOR_FILE)


def save_lora(
    model: Any,
    folder: Path,
    state_dict: dict[str, torch.Tensor] | None = None,
    others: dict[str, torch.Tensor] | None = None,
) -> None:
    """The adapter, of whichever kind, as PEFT writes it, the other trained weights, and the LLaVA config.

    Args:
        state_dict: the adapter's values, where the model itself does not have them whole.
        others: `non_lora_tensors`, if all ranks had to put them together.
    """
    model.create_or_update_model_card = _no_card  # an empty one, or one that changes what a user wrote
    try:
        model.save_pretrained(folder, state_dict=state_dict, selected_adapters=["default"])
    finally:
        del model.create_or_update_model_card
    _save_config(model.get_base_model(), folder)
    if model.generation_config is not None:
        model.generation_config.save_pretrained(folder)
    others = non_lora_tensors(model) if others is None else others
    _save_tensors(others, folder / NON_LORA_FILE)


def save_scales(model: Any, folder: Path) -> None:
    """config.json, and the scales of quantised layers with all else that was trained."""
    _save_config(model, folder)
    _save_tensors(non_lora_tensors(model), folder / SCALES_FILE)


def whole(parameter: torch.Tensor) -> torch.Tensor:
    """A parameter's values. All ranks have to call it for one that DeepSpeed ZeRO-3 keeps in pieces: it is a copy."""
    if not hasattr(parameter, "ds_id"):
        return parameter.detach()
    from deepspeed import zero

    with zero.GatheredParameters([parameter]):
        return parameter.data.detach().cpu().clone()


def adapter_names(model: nn.Module) -> frozenset[str]:
    """Names of the adapter's trained weights of a PEFT model; empty for any other model."""
    if not is_peft(model):
        return frozenset()
    from peft.tuners.tuners_utils import BaseTunerLayer

    ids = {id(p) for p in getattr(model, "prompt_encoder", nn.Module()).parameters()}
    for module in model.modules():
        if isinstance(module, BaseTunerLayer):
            for name in module.adapter_layer_names:
                ids |= {id(p) for p in getattr(module, name, nn.Module()).parameters()}
    return frozenset(name for name, p in model.named_parameters() if id(p) in ids and not is_initial(name))


def non_lora_tensors(model: Any) -> dict[str, torch.Tensor]:
    """Trained weights of a PEFT model outside its adapter, and what readers cannot make up.

    That is `image_newline`, and the frozen start of a PiSSA or MiLoRA adapter.

    Names are those in a model whose layers are not wrapped, as `load_tensors` and other readers expect them.
    """
    adapter = adapter_names(model)
    newline = id(getattr(model.get_model(), "image_newline", None)) if hasattr(model, "get_model") else None
    return {
        _name_outside_lora(name): whole(p)
        for part, name, p in parts_of(model)
        if name not in adapter
        and (p.requires_grad or is_initial(name) or (part == LANGUAGE_MODEL and id(p) == newline))
    }


def load_tensors(model: nn.Module, file: Path) -> None:
    """Copy the tensors of `file` into the parameters of the same names; unknown names raise `InputError`."""
    parameters = {_name_outside_lora(name): parameter for name, parameter in model.named_parameters()}
    tensors = read_tensors(file)
    for name, tensor in sorted(tensors.items()):
        if name not in parameters:
            raise InputError(f"{file} holds {name!r}, which this model does not have; was it made with other flags?")
        if tensor.shape != parameters[name].shape:
            raise InputError(
                f"{file}: {name} is {list(tensor.shape)}, in this model {list(parameters[name].shape)}; was it made "
                "with other flags?"
            )
    with torch.no_grad():
        for name, tensor in tensors.items():
            parameters[name].copy_(tensor)


def lacking(model: nn.Module, folder: Path) -> str | None:
    """Name of a weight that the folder's safetensors files should hold and do not, in its shape; None if there is none.

    Those are all weights of a whole model; of a LoRA or projector-only run, the trained ones.
    """
    files = sorted(folder.glob("*.safetensors"))
    whole_model = any(path.name.startswith("model") for path in files)
    stored = {name: shape for path in files for name, shape in tensor_shapes(path).items()}
    shapes: dict[nn.Parameter, list[tuple[int, ...] | None]] = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):  # a tied one is stored under one name
        shapes.setdefault(parameter, []).extend(stored.get(one) for one in _names_in_files(name))
    for name, parameter in model.named_parameters():
        shape = tuple(getattr(parameter, "ds_shape", parameter.shape))  # DeepSpeed's, of one that is in pieces
        if (whole_model or parameter.requires_grad) and shape not in shapes[parameter]:
            return name
    return None


def _names_in_files(name: str) -> set[str]:
    """What PEFT and this tree call a parameter in files: its own name, without PEFT's levels."""
    if name == PROMPT:
        return {"prompt_embeddings"}
    plain = name.replace(".default.", ".")
    return {name, _name_outside_lora(name), plain, name.removesuffix(".default"), plain.removesuffix(".weight")}


def check_saved(model: nn.Module, folder: Path) -> None:
    """`InputError` unless what was just saved is there (`lacking`)."""
    left_out = lacking(model, folder)
    if left_out is not None:
        raise InputError(
            f"--output_dir {folder}: the model that was saved there lacks {left_out}, so it cannot be used. Where "
            "DeepSpeed or FSDP keep the weights in pieces, they must be told to put them together for saving"
        )


def is_peft(model: nn.Module) -> bool:
    """Whether `model` is PEFT's wrapper, without importing PEFT."""
    return hasattr(model, "peft_config")


def _name_outside_lora(name: str) -> str:
    """`q_proj.base_layer.bias`, as it is called inside PEFT's layer, is `q_proj.bias`."""
    return name.replace(".base_layer.", ".")


def _save_config(model: Any, folder: Path) -> None:
    """config.json beside what needs its base: the model's, with the class and the base's mark."""
    config = copy.deepcopy(model.config)
    config.architectures = [type(model).__name__]
    mark = base_mark(config._name_or_path)
    if mark is not None:
        setattr(config, BASE_SHA256, mark)
    config.save_pretrained(folder)


def _save_tensors(tensors: dict[str, torch.Tensor], file: Path) -> None:
    values = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    save_file(values, file, metadata={"format": "pt"})


def _no_card(folder: str) -> None:
    """In place of PEFT's."""


@contextmanager
def for_use(model: Any, folder: Path) -> Iterator[None]:
    """What is saved to `folder` inside is a model to be used: with a cache of keys and values, by whom the umask lets.

    Training has no use for the cache, and switches it off.
    """
    config, trained_with = model.config, model.config.use_cache
    config.use_cache = True
    try:
        yield
    finally:
        config.use_cache = trained_with
    follow_umask(*folder.glob("*.safetensors"))
