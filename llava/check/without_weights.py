"""What the data set needs of a model (tokenizer, image processor, tokens of an image) without its weights.

A run has these from `llava.train.parts.build`, at the price of the whole model. Here a config is read, and the vision
tower is built on torch's meta device, where parameters have a shape and no memory.
"""

from __future__ import annotations

from typing import Any

import torch

from llava.errors import InputError
from llava.model.checkpoint_files import weight_files
from llava.model.loading import tower_shapes
from llava.model.multimodal_encoder.builder import build_vision_tower
from llava.model.multimodal_encoder.tower import VisionTower
from llava.model.multimodal_encoder.tower_config import describe_tower, tower_name
from llava.model.vision_settings import copy_settings
from llava.model.vocabulary import check_fits, image_tokens
from llava.train.flags.arguments import DataArguments, ModelArguments, TrainingArguments
from llava.train.parts.build import get_config, get_tokenizer, set_up_images


def prepare_data_arguments(
    model_args: ModelArguments, data_args: DataArguments, training_args: TrainingArguments
) -> Any:
    """The tokenizer of a run, and `data_args` as a run has it; the arguments are changed as `train.parts.build` does.

    Raises:
        InputError: a checkpoint without tokenizer or config, or a tower that is not supported.
    """
    path = model_args.model_name_or_path
    tokenizer, config = get_tokenizer(model_args, training_args), get_config(model_args, training_args)
    check_fits(tokenizer, config.vocab_size, str(path))
    if model_args.vision_tower is None:
        return tokenizer
    if not config.name_or_path:
        config.name_or_path = str(path)  # a relative tower folder is looked for inside the checkpoint
    own = getattr(config, "mm_vision_tower", None) is not None
    tower = _tower(config, str(path), training_args) if own else None
    # the projector decides no length, so the checkpoint's is not worth a warning
    model_args.mm_projector_type = getattr(config, "mm_projector_type", None) or model_args.mm_projector_type
    copy_settings(model_args, config, keep_tower=own, keep_projector=own)
    if tower is None:
        tower = _tower(config, str(path), training_args)
    set_up_images(config, tower, tokenizer, model_args, data_args, training_args)
    tokenizer.add_tokens(image_tokens(model_args), special_tokens=True)
    return tokenizer


def _tower(config: Any, path: str, training_args: TrainingArguments) -> VisionTower:
    """The tower that the config names, without memory for its weights."""
    shapes = _shapes_if_there(path, training_args.cache_dir)
    name = tower_name(config)
    assert name is not None
    describe_tower(name, config, shapes).remember(config)
    with torch.device("meta"):
        return build_vision_tower(config, in_checkpoint=True)


def _shapes_if_there(path: str, cache_dir: str | None) -> dict[str, tuple[int, ...]]:
    """Shapes of the tower's weights in the checkpoint; a description of the tower may have to do without them."""
    where: dict[str, Any] = {"local_only": True, "cache_dir": cache_dir}
    try:
        weight_files(path, **where)
    except InputError:  # an index whose shards are not here
        return {}
    return tower_shapes(path, **where)
