"""From arguments to the model and tokenizer of a run.

A run starts from a plain language model (the vision parts are then added) or from a LLaVA checkpoint.
Which class is built follows the config's model type; nothing is decided by the name of a folder.
"""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import torch
import transformers

from llava.errors import InputError
from llava.mm_utils import expand_grid_pinpoints, processor_tile_size
from llava.model import config_for, model_class_for, overwrite_entries
from llava.model.checkpoint_files import usable
from llava.model.llava_arch import LlavaMetaForCausalLM
from llava.model.load_settings import quantisation, resolve_attention
from llava.model.loading import load_plain
from llava.model.own_settings import TEMPLATE, read_config
from llava.model.vocabulary import load_tokenizer
from llava.samples.image_tokens import ImageTokenCounter
from llava.train.flags.arguments import DataArguments, ModelArguments, TrainingArguments
from llava.train.flags.from_checkpoint import OF_THE_DATA
from llava.train.parts.adapters import zero_3

logger = logging.getLogger(__name__)


def run_dtype(args: TrainingArguments) -> torch.dtype:
    """Dtype of the language model's and the tower's weights: bfloat16 with `--bf16`, else float32."""
    return torch.bfloat16 if args.bf16 else torch.float32


def get_tokenizer(model_args: ModelArguments, training_args: TrainingArguments) -> Any:
    """The tokenizer beside the model, padding on the right, with a pad token that is no word."""
    tokenizer = load_tokenizer(
        str(model_args.model_name_or_path),
        cache_dir=training_args.cache_dir,
        model_max_length=training_args.model_max_length,
        padding_side="right",
    )
    if tokenizer.pad_token is None or model_args.version == "v0.5":
        if tokenizer.unk_token is not None and model_args.version != "v0":
            tokenizer.pad_token = tokenizer.unk_token
        elif model_args.version == "v0":
            tokenizer.add_special_tokens({"pad_token": "[PAD]"})
    return tokenizer


def get_model(
    model_args: ModelArguments, training_args: TrainingArguments, bnb_args: dict[str, Any] | None = None
) -> Any:
    """The language model or LLaVA checkpoint of `--model_name_or_path`, not yet with new vision modules.

    Args:
        bnb_args: further arguments of `from_pretrained`, for quantised loading (`quantisation_of_run`).
    """
    path = model_args.model_name_or_path
    if zero_3(training_args):
        _join_processes()
    config = get_config(model_args, training_args)
    model_class = _model_class(model_args, config)
    if model_args.rope_scaling_factor is not None:
        _stretch_positions(config, model_args, training_args.model_max_length)
    arguments = {
        "config": config,
        "attn_implementation": resolve_attention(training_args.attn_implementation),
        "dtype": run_dtype(training_args),
        "cache_dir": training_args.cache_dir,
        **(bnb_args or {}),
    }
    sees = issubclass(model_class, LlavaMetaForCausalLM)  # these check for themselves what they load
    model = model_class.from_pretrained(path, **arguments) if sees else load_plain(model_class, str(path), **arguments)
    model.config.use_cache = False
    return model


def _join_processes() -> None:
    """DeepSpeed counts its processes when a model is loaded in pieces; on CPUs nobody has told it of them before."""
    import deepspeed.comm

    if not deepspeed.comm.is_initialized():
        deepspeed.comm.init_distributed()


def get_config(model_args: ModelArguments, training_args: TrainingArguments) -> Any:
    """The config of `--model_name_or_path`; `model_args.vision_tower` becomes the checkpoint's where none is given."""
    path: Any = model_args.model_name_or_path
    hub = {"cache_dir": training_args.cache_dir}
    with usable(f"{path}: its config.json"):
        given, own = model_args.vision_tower, read_config(path, **hub).get("mm_vision_tower")
        model_args.vision_tower = given or own
        sees = model_args.vision_tower is not None
        config: Any = config_for(path, **hub) if sees else transformers.AutoConfig.from_pretrained(path, **hub)
    if own is not None and given is not None and Path(given).is_dir():
        overwrite_entries(config, {"mm_vision_tower": given})  # a folder tells the shape of the checkpoint's tower
    return config


def quantisation_of_run(args: TrainingArguments) -> dict[str, Any]:
    """`from_pretrained` arguments for `--bits`; none for 16."""
    return quantisation(args.bits == 8, args.bits == 4, run_dtype(args), args.double_quant, args.quant_type)


def add_vision(
    model: Any, tokenizer: Any, model_args: ModelArguments, data_args: DataArguments, training_args: TrainingArguments
) -> None:
    """Vision tower, projector and their tokens on `model`; the image settings in its config and in `data_args`."""
    model.get_model().initialize_vision_modules(model_args=model_args, fsdp=training_args.fsdp)
    tower = model.get_vision_tower()
    tower.to(dtype=run_dtype(training_args))
    set_up_images(model.config, tower, tokenizer, model_args, data_args, training_args)
    model.initialize_vision_tokenizer(model_args, tokenizer=tokenizer)
    one_dtype = zero_3(training_args)
    if one_dtype:
        logger.info(
            "ZeRO-3 trains weights of one dtype: those of projector and adapter are %s", run_dtype(training_args)
        )
    if training_args.trainer_mode == "zo" or one_dtype:
        # No autocast: one dtype for all weights. Not for the whole model, whose rotary frequencies stay in float32.
        model.get_model().mm_projector.to(dtype=run_dtype(training_args))


def set_up_images(
    config: Any,
    tower: Any,
    tokenizer: Any,
    model_args: ModelArguments,
    data_args: Any,
    training_args: TrainingArguments,
) -> None:
    """What the data set has to know of the vision modules, into `data_args`; the image settings into `config`."""
    data_args.image_processor = tower.image_processor
    data_args.is_multimodal = True
    if data_args.image_grid_pinpoints is not None:
        tile = processor_tile_size(tower.image_processor)
        data_args.image_grid_pinpoints = expand_grid_pinpoints(data_args.image_grid_pinpoints, tile)
    _write_config(config, tokenizer, model_args, data_args, training_args)
    data_args.count_image_tokens = ImageTokenCounter.of_tower(config, tower)


def _model_class(model_args: ModelArguments, config: Any) -> type[Any]:
    if model_args.model_class_name is not None:
        return class_of(model_args.model_class_name, model_args.vision_tower)
    if model_args.vision_tower is None:
        return transformers.AutoModelForCausalLM
    return model_class_for(config, model_args.model_name_or_path)


def class_of(model_class_name: str, vision_tower: str | None) -> type[Any]:
    """The class of `--model_class_name`, a model of text alone."""
    name = f"{model_class_name}ForCausalLM"
    if not hasattr(transformers, name):
        raise InputError(f"--model_class_name {model_class_name}: transformers has no {name}")
    if vision_tower is not None:
        raise InputError(
            f"--model_class_name {model_class_name} is a model of text alone, and has no place for the vision tower "
            f"{vision_tower}: leave one of them out"
        )
    return getattr(transformers, name)


def _stretch_positions(config: Any, model_args: ModelArguments, model_max_length: int) -> None:
    stretched = int(config.max_position_embeddings * model_args.rope_scaling_factor)
    if model_max_length != stretched:
        raise InputError(
            f"--rope_scaling_factor {model_args.rope_scaling_factor} of {config.max_position_embeddings} positions "
            f"needs --model_max_length {stretched}, not {model_max_length}"
        )
    stretch = {"rope_type": model_args.rope_scaling_type, "factor": model_args.rope_scaling_factor}
    config.rope_parameters = {**config.rope_parameters, **stretch}


def _write_config(
    config: Any, tokenizer: Any, model_args: ModelArguments, data_args: DataArguments, training_args: TrainingArguments
) -> None:
    """What a reader of the checkpoint has to know besides the vision modules' own entries, under LLaVA-NeXT's names."""
    for name in OF_THE_DATA:
        setattr(config, name, getattr(data_args, name))
    setattr(config, TEMPLATE, model_args.version)
    config.mm_use_im_start_end = model_args.mm_use_im_start_end
    config.mm_use_im_patch_token = model_args.mm_use_im_patch_token
    if model_args.mm_tunable_parts is not None:
        config.mm_tunable_parts = model_args.mm_tunable_parts
    else:
        for name in ("tune_mm_mlp_adapter", "tune_mm_vision_resampler", "unfreeze_mm_vision_tower"):
            setattr(config, name, getattr(model_args, name))
        for name in ("freeze_mm_mlp_adapter", "freeze_mm_vision_resampler"):
            setattr(config, name, getattr(training_args, name))
    config.mm_projector_lr = training_args.mm_projector_lr
    config.mm_vision_tower_lr = training_args.mm_vision_tower_lr
    config.tokenizer_padding_side = tokenizer.padding_side
    config.tokenizer_model_max_length = tokenizer.model_max_length


def smart_tokenizer_and_embedding_resize(special_tokens_dict: dict[str, Any], tokenizer: Any, model: Any) -> None:
    """Add special tokens; their rows in the embedding table and the head start as the mean of the old rows.

    The table never shrinks: rows that pad it to a round number stay, and are used first.
    """
    old = len(tokenizer)
    added = tokenizer.add_special_tokens(special_tokens_dict)
    if added == 0:
        return
    if len(tokenizer) > model.get_input_embeddings().weight.shape[0]:
        model.resize_token_embeddings(len(tokenizer))
    tables = {
        id(m.weight): m.weight for m in (model.get_input_embeddings(), model.get_output_embeddings()) if m is not None
    }
    with torch.no_grad():
        for table in tables.values():
            table[old : old + added] = table[:old].mean(dim=0, keepdim=True)
