"""What MeZO takes of a run's flags: its settings, and which flags it cannot honour.

Used by the command line, before a model is loaded, and by MeZOTrainer.
"""

from __future__ import annotations

import os
from dataclasses import fields
from typing import Any

from llava.errors import InputError
from llava.mezo.config import MeZOConfig
from llava.train.step_batches import Growth

FLAGS = {"storage": "zo_weight_storage"}
"""Of those settings whose flag is not `zo_` and their name."""


def mezo_config(args: Any) -> MeZOConfig:
    """The engine's settings from the training arguments; a value out of range raises ValueError."""
    flags = {field.name: FLAGS.get(field.name, f"zo_{field.name}") for field in fields(MeZOConfig)}
    # LLaVA-NeXT, whose models cannot be recorded, has no flags for graphs
    values = {name: getattr(args, flag) for name, flag in flags.items() if hasattr(args, flag)}
    if values.get("estimator") == "per_example":
        values["num_directions"] = examples_of_a_step(args)
    return MeZOConfig(**values)


def examples_of_a_step(args: Any) -> int:
    """Over all processes; `args` as transformers has them, or as they stand on the command line."""
    rows = getattr(args, "train_batch_size", args.per_device_train_batch_size)
    ranks = getattr(args, "world_size", None) or int(os.environ.get("WORLD_SIZE", 1))
    return int(rows * args.gradient_accumulation_steps * ranks)


def anchor_batches(args: Any) -> int:
    """How many usual steps' records a step at an anchor has."""
    return int(getattr(args, "zo_anchor_batches", 1)) if getattr(args, "zo_estimator", "") == "svrg" else 1


def planned_rows(args: Any, anchor_steps: int) -> list[int] | None:
    """Records of each step of a run, over all processes, where steps differ; None where they do not.

    Raises:
        InputError: a step that cannot be shared out to the processes evenly.
    """
    growth, anchor = getattr(args, "zo_batch_growth", None), anchor_batches(args)
    if growth is None and anchor == 1:
        return None
    usual = args.train_batch_size * args.world_size
    stages = Growth(((0.0, usual),)) if growth is None else Growth.parse(growth)
    rows = stages.rows(args.max_steps)
    odd = [count for count in rows if count % args.world_size]
    if odd:
        raise InputError(
            f"--zo_batch_growth {growth}: {odd[0]} records cannot be shared out evenly to {args.world_size} processes"
        )
    return [count if step % anchor_steps else count * anchor for step, count in enumerate(rows)]


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
    _refuse_batches(args)
    for name in ("deepspeed", "fsdp", "torch_compile"):
        if getattr(args, name):
            raise InputError(
                f"--{name} excludes --trainer_mode zo: zeroth-order steps perturb the weights module by "
                "module. Leave it out"
            )


def _refuse_batches(args: Any) -> None:
    """What an estimator, or a plan of batches, cannot go with."""
    estimator, growth = getattr(args, "zo_estimator", "spsa"), getattr(args, "zo_batch_growth", None)
    planned = "--zo_batch_growth" if growth is not None else "--zo_anchor_batches" if anchor_batches(args) > 1 else None
    if growth is not None:
        Growth.parse(growth)
    if getattr(args, "zo_anchor_batches", 1) < 1:
        raise InputError(f"--zo_anchor_batches {args.zo_anchor_batches} must be at least 1")
    if planned and args.max_steps < 1:
        raise InputError(f"{planned} needs --max_steps: it plans the records of every step")
    if planned and args.gradient_accumulation_steps > 1:
        raise InputError(
            f"{planned} excludes --gradient_accumulation_steps {args.gradient_accumulation_steps}: a step's records "
            "are taken in parts of --per_device_train_batch_size already"
        )
    if planned and estimator in ("per_example", "guided"):
        raise InputError(f"{planned} excludes --zo_estimator {estimator}, whose steps have one batch of one size")
    if estimator == "per_example" and args.zo_num_directions != 1:
        raise InputError(
            f"--zo_num_directions {args.zo_num_directions} excludes --zo_estimator per_example, which has a direction "
            "for each record of a step: leave it out"
        )
    if estimator == "per_example" and not args.dataloader_drop_last:
        raise InputError(
            "--zo_estimator per_example needs --dataloader_drop_last True: every step has as many records, a direction "
            "for each"
        )
    if estimator in ("per_example", "guided") and args.gradient_accumulation_steps > 1:
        raise InputError(
            f"--gradient_accumulation_steps {args.gradient_accumulation_steps} excludes --zo_estimator {estimator}, "
            "which takes a step's records as one batch: raise --per_device_train_batch_size"
        )
    if estimator == "svrg" and args.weight_decay:
        raise InputError(f"--weight_decay {args.weight_decay} excludes --zo_estimator svrg, which takes updates back")
