"""Flags of all commands that load a model to ask it: in which numbers it computes, and how its pictures are read."""

from __future__ import annotations

import argparse
from typing import Any

from llava.errors import InputError
from llava.eval.generation import load_model
from llava.model.load_settings import quantisation, resolve_dtype
from llava.model.own_settings import dtype_of


def add_loading_flags(parser: argparse.ArgumentParser) -> None:
    """For `quantised`, `load` and `llava.samples.pictures.PictureSettings.of`."""
    parser.add_argument("--torch-dtype", default="auto", help="auto (the checkpoint's), float32, bfloat16 or float16")
    parser.add_argument("--bits", type=int, default=16, help="4 or 8: load with bitsandbytes, as in training")
    parser.add_argument("--quant-type", default="nf4", help="with --bits 4: nf4 or fp4")
    parser.add_argument("--double-quant", default="True", help="with --bits 4: True or False")
    parser.add_argument("--attn-implementation", default="sdpa", help="sdpa, eager or flash_attention_2")
    parser.add_argument("--image-window", type=float, nargs=2, metavar=("LOW", "HIGH"), help="as in training")
    parser.add_argument("--max-image-pixels", type=int, help="as in training")


def quantised(options: argparse.Namespace) -> dict[str, Any]:
    """What the flags say of bits, for `from_pretrained`; computed in the dtype of the other weights, as in training.

    Raises:
        InputError: a value that is not allowed, or that would have no effect.
    """
    bits, kind, double = options.bits, options.quant_type, options.double_quant
    for flag, value, allowed in (
        ("bits", bits, (4, 8, 16)),
        ("quant-type", kind, ("nf4", "fp4")),
        ("double-quant", double, ("True", "False")),
    ):
        if value not in allowed:
            raise InputError(f"--{flag} {value}: allowed are {', '.join(map(str, allowed))}")
    if bits != 4 and (kind, double) != ("nf4", "True"):
        raise InputError(f"--quant-type and --double-quant have no effect with --bits {bits}: they are for 4")
    if bits == 16:
        return {}
    if getattr(options, "journal", None) is not None:
        raise InputError(f"--bits {bits} excludes --journal, whose models are whole ones: write a step and give that")
    given = options.torch_dtype
    if given == "auto":
        given = dtype_of(options.model_path, options.model_base)
    return quantisation(bits == 8, bits == 4, resolve_dtype(given), double == "True", kind)


def load(options: argparse.Namespace) -> tuple[Any, Any, Any]:
    """(model, tokenizer, image processor) of `--model-path` on `--model-base`. InputError: as `quantised`."""
    dtype, attention = options.torch_dtype, options.attn_implementation
    return load_model(options.model_path, options.model_base, dtype, attention, quantised(options))
