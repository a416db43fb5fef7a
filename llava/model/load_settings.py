"""Number format, device, attention and quantisation that a model is loaded with: what was asked for, or the nearest."""

from __future__ import annotations

import importlib.util
import logging
from typing import Any

import torch
from transformers import BitsAndBytesConfig

from llava.errors import InputError

logger = logging.getLogger(__name__)

DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16, "auto": "auto"}


def resolve_dtype(given: str | torch.dtype | None) -> Any:
    """A torch.dtype, or "auto" for the one the weights are stored in."""
    if isinstance(given, torch.dtype):
        return given
    if given not in DTYPES:
        raise InputError(f"torch_dtype {given!r} is not supported; allowed: {', '.join(DTYPES)}, or a torch.dtype.")
    return DTYPES[given]


def resolve_device_map(given: Any) -> Any:
    """What was asked for; without a GPU, the CPU."""
    if torch.cuda.is_available() or given is None:
        return given
    if given not in ("auto", "cpu", {"": "cpu"}):
        logger.warning("device_map %r: no GPU is available, the model goes to the CPU", given)
    return {"": "cpu"}


def resolve_attention(given: str | None) -> str | None:
    """What was asked for; sdpa, with a warning, for flash attention without a GPU or without its package."""
    if given != "flash_attention_2":
        return given
    if torch.cuda.is_available() and importlib.util.find_spec("flash_attn") is not None:
        return given
    logger.warning("flash_attention_2 needs a GPU and the flash_attn package; sdpa is used in its place")
    return "sdpa"


_said: set[str] = set()


def _said_once(record: logging.LogRecord) -> bool:
    """A filter for what bitsandbytes says in every forward of every layer in 8 bits."""
    text = record.getMessage()
    new = text not in _said
    _said.add(text)
    return new


def quantisation(
    load_8bit: bool,
    load_4bit: bool,
    compute_dtype: torch.dtype = torch.float16,
    double_quant: bool = True,
    quant_type: str = "nf4",
) -> dict[str, Any]:
    """Arguments of `from_pretrained` for bitsandbytes; none when neither is asked for."""
    if not load_8bit and not load_4bit:
        return {}
    if load_8bit and load_4bit:
        raise InputError("load_8bit and load_4bit exclude each other: set one.")
    if importlib.util.find_spec("bitsandbytes") is None:
        raise InputError(
            "loading in 8 or 4 bits (--bits, load_8bit, load_4bit) needs bitsandbytes: pip install bitsandbytes."
        )
    # Images are few and their modules small: they stay at full precision.
    logging.getLogger("bitsandbytes.autograd._functions").addFilter(_said_once)
    skipped = ["model.vision_tower", "model.mm_projector", "lm_head"]
    if load_8bit:
        return {"quantization_config": BitsAndBytesConfig(load_in_8bit=True, llm_int8_skip_modules=skipped)}
    settings = BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_compute_dtype=compute_dtype,
        bnb_4bit_use_double_quant=double_quant,
        bnb_4bit_quant_type=quant_type,
        llm_int8_skip_modules=skipped,
    )
    return {"quantization_config": settings}
