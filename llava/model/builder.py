"""Load a checkpoint for use: tokenizer, model, image processor and context length.

tokenizer, model, image_processor, context_len = load_pretrained_model(path, None, get_model_name_from_path(path))
"""

from __future__ import annotations

import importlib.util
from collections.abc import Collection
from typing import Any

import torch
from transformers import AutoModelForCausalLM

from llava.errors import InputError
from llava.model.adapter_kinds import is_initial
from llava.model.base_mark import BASE_SHA256, compare_bases
from llava.model.checkpoint_files import find_file, read_tensors, usable
from llava.model.checkpoint_kind import check_checkpoint
from llava.model.families import config_for, is_llava_config, model_class_for, overwrite_entries
from llava.model.load_settings import quantisation, resolve_attention, resolve_device_map, resolve_dtype
from llava.model.loading import adapter_file, load_adapter, load_learned_tokens, load_plain
from llava.model.own_settings import dtype_of, read_config
from llava.model.quantised import SETTINGS, base_arguments, bits_of, dequantise
from llava.model.quantised_scales import SCALES_FILE, load_scales
from llava.model.vocabulary import check_fits, grow_embeddings, image_tokens, load_tokenizer

NON_LORA_FILES = ("non_lora_trainables.safetensors", "non_lora_trainables.bin")
DEFAULT_CONTEXT = 2048


def load_pretrained_model(
    model_path: str,
    model_base: str | None,
    model_name: str,
    load_8bit: bool = False,
    load_4bit: bool = False,
    device_map: Any = "auto",
    torch_dtype: str | torch.dtype = "float16",
    attn_implementation: str | None = "flash_attention_2",
    customized_config: Any = None,
    overwrite_config: dict[str, Any] | None = None,
    **kwargs: Any,
) -> tuple[Any, Any, Any, int]:
    """Load a full checkpoint, a LoRA run, an adapter-only run, or a plain language model.

    Args:
        model_path: folder or hub id. With `model_base` it holds an adapter, which PEFT itself may have saved, or a
            projector alone.
        model_base: the model that `model_path` was trained from.
        model_name: decides, with "llava" in it, that the checkpoint sees images; so does `multimodal=True`, or a config
            that names a tower.
        load_8bit, load_4bit: quantise with bitsandbytes (4 bit: nf4, double quantisation, float16 compute). With
            `model_base` it is the base: in the settings of the run, if that was on as many bits. An adapter then stays
            beside its layers; on a base that is not quantised it becomes weights.
        device_map: as for transformers; without a GPU the model goes to the CPU.
        torch_dtype: "float32", "float16", "bfloat16", "auto" (as stored) or a torch.dtype.
        attn_implementation: flash_attention_2 becomes sdpa, with a warning, where it is not available.
        customized_config: used in place of the checkpoint's config.
        overwrite_config: entries set on the config before loading, such as `{"mm_vision_tower": DIR}`.
        kwargs: `multimodal`; `dequantise=True`, a `model_base` that is quantised as asked and goes on as ordinary
            weights of what that left; the rest goes to `from_pretrained`.

    Returns:
        (tokenizer, model in eval mode, image processor or None for a plain language model, context length).

    Raises:
        InputError: for a checkpoint that is missing, incomplete or of an unsupported kind.
    """
    check_checkpoint(model_path, model_base)
    multimodal = kwargs.pop("multimodal", None)
    arguments = {
        "dtype": resolve_dtype(torch_dtype),
        "device_map": resolve_device_map(device_map),
        "attn_implementation": resolve_attention(attn_implementation),
        **quantisation(load_8bit, load_4bit),
        **kwargs,
    }
    # PEFT itself saves no config beside an adapter: it is the base's then
    settings = model_path if model_base is None or _has_config(model_path) else model_base
    if not (multimodal or "llava" in model_name.lower() or (multimodal is None and _names_tower(settings))):
        tokenizer, model = _load_plain(model_path, model_base, arguments)
        return tokenizer, model.eval(), None, _context_length(model.config)
    config = customized_config if customized_config is not None else config_for(settings)
    overwrite_entries(config, overwrite_config or {})
    if not is_llava_config(config):
        raise InputError(f"{settings}: its config.json names no mm_vision_tower, so it is not a model with images.")
    if model_base is None:
        tokenizer = load_tokenizer(model_path)
        check_fits(tokenizer, config.vocab_size, model_path)
        model = model_class_for(config, model_path).from_pretrained(model_path, config=config, **arguments)
    else:
        tokenizer, model = _load_on_base(model_path, model_base, config, arguments)
    tokenizer.add_tokens(image_tokens(model.config), special_tokens=True)
    grow_embeddings(model, tokenizer)
    tower = model.get_vision_tower()
    tower.load_model()
    return tokenizer, model.eval(), tower.image_processor, _context_length(model.config)


def _load_on_base(path: str, base: str, config: Any, arguments: dict[str, Any]) -> tuple[Any, Any]:
    """A base model plus what a run saved of an adapter, a projector or scales."""
    compare_bases(path, base)
    # The run's config may come from a language model of the same family without images, so the base decides.
    base_config = config_for(base)
    family = model_class_for(base_config, base)
    config = family.config_class.from_dict(config.to_dict() | {"model_type": family.config_class.model_type})
    config._name_or_path = str(path)
    scales, of_run = find_file(path, SCALES_FILE), config.to_dict().get(SETTINGS)
    bits, asked = bits_of(of_run), bits_of(arguments.get(SETTINGS))
    if scales is not None and bits != asked:
        raise InputError(
            f"{scales}: these are scales of the base in {bits} bits, which is to be loaded in {asked}: give --bits "
            f"{bits} (load_{bits}bit=True)"
        )
    arguments |= base_arguments(of_run, arguments.pop(SETTINGS, None), path)
    vars(config).pop(SETTINGS, None)  # the library would look for quantised weights in the base's files
    vars(config).pop(BASE_SHA256, None)  # what is saved next need not have this base
    backwards = arguments.pop("dequantise", False)
    tokenizer = load_tokenizer(base if find_file(path, "tokenizer_config.json") is None else path)
    tokenizer.add_tokens(image_tokens(config), special_tokens=True)
    rows, config.vocab_size = config.vocab_size, base_config.vocab_size
    model = family.from_pretrained(base, config=config, vision_from_elsewhere=True, **arguments)
    others = None if scales is None else load_scales(model, read_tensors(scales), scales, base, dtype_of(path))
    if backwards:
        dequantise(model)
    wanted = max(rows, len(tokenizer))
    if wanted > model.get_input_embeddings().weight.shape[0]:
        model.resize_token_embeddings(wanted, mean_resizing=False)
    if others is not None:
        _load_others(model, path, others, SCALES_FILE)
        return tokenizer, model
    if find_file(path, "adapter_config.json") is not None:
        initial = _load_others(model, path, _non_lora_tensors(path), " or ".join(NON_LORA_FILES))
        model.get_vision_tower().load_model()  # an adapter may be in it
        return tokenizer, _adapted(model, path, initial)
    load_adapter(model.get_model(), adapter_file(path))
    _load_embeddings(model, path)
    return tokenizer, model


def _load_embeddings(model: Any, path: str) -> None:
    """Rows of start and end marks that an adapter-only run saved with its projector."""
    tensors = read_tensors(adapter_file(path), lambda name: name.endswith("embed_tokens.weight"))
    table = model.get_input_embeddings().weight
    for name, rows in tensors.items():
        if rows.shape[1:] != table.shape[1:] or len(rows) > len(table):
            raise InputError(f"{path}: {name} is {list(rows.shape)}, but {list(table.shape)} in the model")
        with torch.no_grad():
            table[: len(rows)] = rows.to(table)


def _non_lora_tensors(path: str) -> dict[str, torch.Tensor]:
    """What a run trained besides the adapter, by the names that it had in PEFT's wrapper."""
    for name in NON_LORA_FILES:
        file = find_file(path, name)
        if file is not None:
            return read_tensors(file)
    if not _has_config(path):
        return {}  # PEFT saved it, and nothing else was trained
    raise InputError(f"{path}: an adapter of PEFT needs {' or '.join(NON_LORA_FILES)} next to adapter_config.json.")


def _model_name(key: str, known: Collection[str]) -> str:
    """What the model calls it: PEFT puts one level in front, or two if the adapter is within layers."""
    prefixes = ("", "base_model.", "base_model.model.", "model.")
    names = (key.removeprefix(prefix) for prefix in prefixes)
    return next((name for name in names if name in known), key)


def _load_others(model: Any, path: str, tensors: dict[str, torch.Tensor], files: str) -> dict[str, torch.Tensor]:
    """Put in what a run trained beside its adapter or scales; returns the start of an adapter, which has no place."""
    known = model.state_dict().keys()
    initial = {name: value for name, value in tensors.items() if is_initial(name)}
    others = {_model_name(name, known): value for name, value in tensors.items() if name not in initial}
    with usable(f"{path}: its {files}"):
        result = model.load_state_dict(others, strict=False)
    if result.unexpected_keys:
        raise InputError(
            f"{path}: weights without a place in the model: {', '.join(sorted(result.unexpected_keys)[:5])}."
        )
    load_learned_tokens(model.get_model(), others, path)
    return initial


def _adapted(model: Any, path: str, initial: dict[str, torch.Tensor]) -> Any:
    if importlib.util.find_spec("peft") is None:
        raise InputError(f"{path} is an adapter of PEFT: install peft (pip install peft).")
    from llava.model.tuners.reading import read_adapter

    return read_adapter(model, path, initial)


def _load_plain(path: str, base: str | None, arguments: dict[str, Any]) -> tuple[Any, Any]:
    """A language model without images; with a base, `path` is a PEFT adapter."""
    if base is None:
        tokenizer = load_tokenizer(path)
        model = load_plain(AutoModelForCausalLM, path, **arguments)
        check_fits(tokenizer, model.get_input_embeddings().weight.shape[0], path)
        return tokenizer, model
    compare_bases(path, base)
    arguments |= base_arguments(read_config(path).get(SETTINGS), arguments.pop(SETTINGS, None), path)
    backwards = arguments.pop("dequantise", False)
    model = load_plain(AutoModelForCausalLM, base, **arguments)
    if backwards:
        dequantise(model)
    trained = find_file(path, NON_LORA_FILES[0])
    initial = {} if trained is None else read_tensors(trained, is_initial)
    return load_tokenizer(base), _adapted(model, path, initial)


def _has_config(path: str) -> bool:
    return find_file(path, "config.json") is not None


def _names_tower(path: str) -> bool:
    return read_config(path).get("mm_vision_tower") is not None


def _context_length(config: Any) -> int:
    for name in ("max_sequence_length", "max_position_embeddings", "tokenizer_model_max_length"):
        value = getattr(config, name, None)
        if value is not None:
            return value
    return DEFAULT_CONTEXT
