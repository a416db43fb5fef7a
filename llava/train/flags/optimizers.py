"""What an optimizer of regular training excludes: refused by the names of both flags, before anything is loaded."""

from __future__ import annotations

import importlib.util
import json
import os
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Any

import torch

from llava.errors import InputError
from llava.train.flags.adapter_flags import given_kind, settle_rate
from llava.train.flags.effects import shown
from llava.train.parts.fused_optimizers import FUSED
from llava.train.parts.optimizers import BITSANDBYTES, GALORE, OPTIMIZERS
from llava.train.parts.tunable import LANGUAGE_MODEL, adapter_only

FUSED_RATES = {"lomo": 1e-2, "adalomo": 1e-3}
"""Of the tiny model on a drawn task: docs/reproduction.md, "Accuracy". AdaLomo's is in units of a weight's own size."""
OF_CYCLES = ("adamw_torch", "adamw_torch_fused")
PACKAGES = {**dict.fromkeys(BITSANDBYTES, "bitsandbytes"), **dict.fromkeys(GALORE, "galore_torch")}
OF_AN_OPTIMIZER = ("optim", "adafactor", "optim_args", "mm_projector_lr", "mm_vision_tower_lr")
ENGINES = ("deepspeed", "fsdp")
Refusal = tuple[str, str]


def check_optimizer(values: Any, given: Collection[str]) -> None:
    """Refuse what does not go together in regular training.

    Args:
        values: the flags as attributes, before transformers looks at them.
        given: names of the flags on the command line.

    Raises:
        InputError: for the first pair of flags.
    """
    optim = "adafactor" if values.adafactor else values.optim
    if optim not in OPTIMIZERS:
        raise InputError(f"--optim {optim}: allowed are {', '.join(OPTIMIZERS)}")
    package = PACKAGES.get(optim)
    if package is not None and importlib.util.find_spec(package) is None:
        raise InputError(f"--optim {optim} needs {package}: pip install {package.replace('_', '-')}")
    refusals = list(_of_deepspeed(values, given))
    if optim in FUSED:
        refusals += _of_fused(values, given, optim)
    if optim in GALORE:
        refusals += _of_galore(values, optim)
    if values.cycle_blocks:
        refusals += _of_cycles(values, optim)
    for what, why in refusals:
        raise InputError(f"{what}: {why}")


def settle_fused(values: Any, given: Collection[str]) -> None:
    """What follows from an optimizer inside the backward pass, in flags that were not given."""
    values.max_grad_norm = 0.0  # a default that has no meaning there
    if given_kind(values) == "none":  # adapters have their own
        settle_rate(values, given, FUSED_RATES[values.optim], f"--optim {values.optim}")


def _of_fused(values: Any, given: Collection[str], optim: str) -> Iterator[Refusal]:
    if values.gradient_accumulation_steps > 1:
        yield (
            f"--optim {optim} excludes --gradient_accumulation_steps {values.gradient_accumulation_steps}",
            "each backward pass is a step; give a larger --per_device_train_batch_size",
        )
    if values.fp16:
        yield (
            f"--optim {optim} excludes --fp16 True",
            "weights take their steps before it is known whether a scaled gradient overflowed; use --bf16 True",
        )
    if "max_grad_norm" in given and values.max_grad_norm > 0:
        yield (
            f"--optim {optim} excludes --max_grad_norm {values.max_grad_norm}",
            "the norm of all gradients is not known before the last weight has taken its step; leave it out"
            + (", or give --optim_args clip_grad_value=V" if optim == "lomo" else ""),
        )
    yield from _alone(values, f"--optim {optim}", "a weight takes its step before gradients are summed")


def _of_galore(values: Any, optim: str) -> Iterator[Refusal]:
    if values.optim_target_modules is None:
        yield (
            f"--optim {optim} needs --optim_target_modules",
            "a pattern of names of layers whose gradients are projected, as .*q_proj, or all-linear",
        )
    if given_kind(values) != "none":
        yield (
            f"--optim {optim} excludes --adapter {given_kind(values)}",
            "an adapter's matrices are of low rank by themselves; give another --optim",
        )
    yield from _alone(values, f"--optim {optim}", "projections are made for whole gradients", several=True)


def _of_cycles(values: Any, optim: str) -> Iterator[Refusal]:
    cycle = f"--cycle_blocks {values.cycle_blocks}"
    if optim not in OF_CYCLES:
        yield f"{cycle} excludes --optim {optim}", f"blocks are trained by one of {', '.join(OF_CYCLES)}"
    if given_kind(values) != "none":
        yield (
            f"{cycle} excludes --adapter {given_kind(values)}",
            "it trains the model's own weights; leave one of them out",
        )
    if values.bits != 16:
        yield f"{cycle} excludes --bits {values.bits}", "quantised weights cannot be trained themselves"
    if adapter_only(values) or (values.mm_tunable_parts is None and values.freeze_backbone):
        yield f"{cycle} excludes training the projector alone", f"name {LANGUAGE_MODEL} in --mm_tunable_parts too"
    yield from _alone(values, cycle, "other processes would not know which weights have gradients")


def _of_deepspeed(values: Any, given: Collection[str]) -> Iterator[Refusal]:
    """A file that names its own optimizer, beside flags of one: DeepSpeed would not use them."""
    flags = [name for name in OF_AN_OPTIMIZER if name in given and getattr(values, name)]
    if not values.deepspeed or not flags:
        return
    try:
        named = json.loads(Path(values.deepspeed).read_text(encoding="utf-8")).get("optimizer")
    except (OSError, ValueError, AttributeError):
        return  # what is wrong with it is said where it is used
    if named is not None:
        yield (
            f"--{flags[0]} {getattr(values, flags[0])} excludes --deepspeed {values.deepspeed}",
            "the file names an optimizer of its own, with one rate; take it out there, or leave out the flag",
        )


def _alone(values: Any, what: str, why: str, several: bool = False) -> Iterator[Refusal]:
    """Engines that share weights out, and unless `several`, more than one process or GPU."""
    for engine in ENGINES:
        if getattr(values, engine):
            yield f"{what} excludes --{engine} {shown(getattr(values, engine))}", why
    processes = int(os.environ.get("WORLD_SIZE", "1"))
    if not several and processes > 1:
        yield f"{what} excludes {processes} processes (torchrun --nproc_per_node)", why
    if not several and torch.cuda.device_count() > 1 and not values.use_cpu and processes == 1:
        yield (
            f"{what} excludes {torch.cuda.device_count()} GPUs in one process",
            "set CUDA_VISIBLE_DEVICES to one of them",
        )
