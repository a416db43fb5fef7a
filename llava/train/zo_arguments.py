"""What MeZO takes of a run's flags: its settings, and which flags it cannot honour.

Used by the command line, before a model is loaded, and by MeZOTrainer.
"""

from __future__ import annotations

from dataclasses import fields
from typing import Any

from llava.errors import InputError
from llava.mezo.config import MeZOConfig

FLAGS = {"storage": "zo_weight_storage"}
"""Of those settings whose flag is not `zo_` and their name."""


def mezo_config(args: Any) -> MeZOConfig:
    """The engine's settings from the training arguments; a value out of range raises ValueError."""
    flags = {field.name: FLAGS.get(field.name, f"zo_{field.name}") for field in fields(MeZOConfig)}
    # LLaVA-NeXT, whose models cannot be recorded, has no flags for graphs
    return MeZOConfig(**{name: getattr(args, flag) for name, flag in flags.items() if hasattr(args, flag)})


def refuse_impossible(args: Any) -> None:
    """Raise `InputError` when a flag excludes `--trainer_mode zo`.

    Args:
        args: the flags as attributes: transformers' training arguments, with or without those of MeZO.
    """
    journal = getattr(args, "zo_journal", False)
    if args.fp16:
        raise InputError(
            "--fp16 True (autocast, loss scaling) excludes --trainer_mode zo: use --bf16 True, or neither for float32"
        )
    if args.label_smoothing_factor:
        raise InputError(
            f"--label_smoothing_factor {args.label_smoothing_factor} excludes --trainer_mode zo, whose loss is the "
            "cross entropy: leave it out"
        )
    if args.auto_find_batch_size:
        raise InputError(
            "--auto_find_batch_size True excludes --trainer_mode zo, which needs no more memory than a forward"
        )
    if args.save_only_model and journal:
        raise InputError(
            "--save_only_model True excludes --zo_journal True, which resumes from whole checkpoints: leave it out, or "
            "--save_strategy steps, since the journal gives every step"
        )
    if getattr(args, "zo_from_journal", None) is not None and not journal:
        raise InputError("--zo_from_journal needs --zo_journal True: the new run's journal goes on from the other one")
    for name in ("deepspeed", "fsdp", "torch_compile"):
        if getattr(args, name):
            raise InputError(
                f"--{name} excludes --trainer_mode zo: zeroth-order steps perturb the weights module by "
                "module. Leave it out"
            )
