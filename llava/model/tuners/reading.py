"""A saved adapter on its base: in the weights where it can be merged, else as PEFT's layers or wrapper."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Mapping
from typing import Any

import torch
from peft import PeftConfig, PeftModelForCausalLM, get_peft_model_state_dict

from llava.errors import InputError
from llava.model.adapter_kinds import FROM_WEIGHTS, IN_LAYERS, MERGED
from llava.model.checkpoint_files import find_file, read_tensors, usable
from llava.model.quantised import is_quantised, keep_dtypes, ready_for_adapters
from llava.model.tuners import houlsby, mora, residual  # noqa: F401  # two are known to PEFT by being imported
from llava.model.tuners.virtual_tokens import VirtualTokensModel

logger = logging.getLogger(__name__)

ADAPTER_FILES = ("adapter_model.safetensors", "adapter_model.bin")


def read_adapter(model: Any, path: str, initial: Mapping[str, torch.Tensor]) -> Any:
    """The model with the adapter of a folder or hub id.

    Args:
        initial: what `is_initial` says yes to, of the run's other weights.

    Raises:
        InputError: the adapter is damaged, incomplete, or another model's.
    """
    file = next((found for name in ADAPTER_FILES if (found := find_file(path, name)) is not None), None)
    if file is None:
        raise InputError(f"{path}: adapter_config.json has no {' or '.join(ADAPTER_FILES)} beside it")
    stored = set(read_tensors(file))
    with usable(f"{path}: its adapter, with this base,"), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # about missing weights, which are refused
        wrapped = _wrapped(ready_for_adapters(model), path, initial)
        wanted = set(get_peft_model_state_dict(wrapped))
    if stored != wanted:
        lacking, over = sorted(wanted - stored), sorted(stored - wanted)
        problem = f"lacks {lacking[0]}" if lacking else f"holds {over[0]}, which has no place in this base"
        raise InputError(f"{file}: {problem}; give the whole adapter, and as model_base the model it was trained from")
    kind = str(getattr(wrapped.active_peft_config.peft_type, "value", wrapped.active_peft_config.peft_type))
    if kind not in MERGED and kind not in IN_LAYERS:
        return VirtualTokensModel.of(wrapped)
    if kind in IN_LAYERS or is_quantised(model):  # rounding their sum to 4 or 8 bits again would lose most of it
        logger.info("the adapter of %s stays beside the layers of its base", path)
        return keep_dtypes(wrapped.get_base_model())
    logger.info("merging the adapter of %s", path)
    return wrapped.merge_and_unload()


def _wrapped(model: Any, path: str, initial: Mapping[str, torch.Tensor]) -> Any:
    config: Any = PeftConfig.from_pretrained(path)
    kind = getattr(config, "init_lora_weights", None)
    if kind not in FROM_WEIGHTS:
        return PeftModelForCausalLM.from_pretrained(model, path)
    if not initial:
        raise InputError(
            f"{path}: an adapter of --adapter {kind} needs non_lora_trainables.safetensors beside it. One that PEFT "
            "saved has to become LoRA there (save_pretrained, path_initial_model_for_weight_conversion)"
        )
    config.init_lora_weights = False  # its values come from the file
    wrapped = PeftModelForCausalLM.from_pretrained(model, path, config=config)
    residual.load_initial(wrapped, initial)
    return wrapped
