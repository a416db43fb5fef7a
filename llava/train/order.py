"""The order in which a run draws its records, by the flags, and whether any batch comes of it."""

from __future__ import annotations

from typing import Any

from torch.utils.data import Sampler

from llava.errors import InputError
from llava.samples.samplers import LengthGroupedSampler
from llava.samples.stratified import StratifiedSampler, can_be_spread
from llava.train.zo.shared_steps import accumulated

ORDERED_BY_LENGTH = ("group_by_length", "group_by_modality_length_auto", "group_by_varlen")
"""Flags whose order leaves nothing to answers."""


def order_of(dataset: Any, args: Any, processes: int) -> Sampler[int] | None:
    """The sampler that the flags ask for; None where order is random."""
    return _stratified(dataset, args, processes) or _grouped(dataset, args, processes)


def check_batches(dataset: Any, args: Any, processes: int) -> None:
    """`InputError`, with the numbers, where an epoch has no step.

    Args:
        dataset: with `lengths`, `modality_lengths` and `answers`, as `LazySupervisedDataset`.
        args: training arguments.
    """
    order, total = order_of(dataset, args, processes), len(dataset)
    drawn = total if order is None else len(order)  # type: ignore[arg-type]
    shared = args.train_batch_size * (1 if args.accelerator_config.split_batches else processes)
    planned = args.trainer_mode == "zo" and (args.zo_batch_growth or args.zo_anchor_batches > 1)  # over epochs' ends
    needed = shared if args.dataloader_drop_last and not planned else 1
    if drawn >= needed:
        return
    grouping = next((name for name in ORDERED_BY_LENGTH if getattr(args, name)), None)
    kept = f"{total} records" if drawn == total else f"{drawn} of {total} records, after --{grouping} True,"
    raise InputError(
        f"{kept} make no full batch of --per_device_train_batch_size {args.per_device_train_batch_size} x {processes} "
        f"processes (--gradient_accumulation_steps {args.gradient_accumulation_steps}, --dataloader_drop_last "
        f"{args.dataloader_drop_last}): nothing would be trained. Give more records in --data_path, a smaller batch, "
        f"or --{'dataloader_drop_last' if drawn else grouping} False"
    )


def _stratified(dataset: Any, args: Any, processes: int) -> StratifiedSampler | None:
    """Every answer evenly spread, if the flags allow it and answers come more than once."""
    if args.stratify_answers == "off" or any(getattr(args, flag) for flag in ORDERED_BY_LENGTH):
        return None
    answers = getattr(dataset, "answers", None)
    if answers is None or not can_be_spread(answers):
        return None
    lengths = dataset.modality_lengths if args.group_by_modality_length else None
    world_size = processes * accumulated(args)
    return StratifiedSampler(answers, lengths, args.train_batch_size, world_size)


def _grouped(dataset: Any, args: Any, processes: int) -> LengthGroupedSampler | None:
    """In LLaVA-NeXT's order of precedence; None for none."""
    batch, world_size = args.train_batch_size, processes * accumulated(args)
    if args.group_by_length:
        return LengthGroupedSampler(batch, world_size, lengths=dataset.lengths)
    if args.group_by_modality_length:
        return LengthGroupedSampler(batch, world_size, lengths=dataset.modality_lengths, group_by_modality=True)
    if args.group_by_modality_length_auto:
        lengths = dataset.modality_lengths
        return LengthGroupedSampler(batch, world_size, lengths=lengths, group_by_modality_auto=True)
    if args.group_by_varlen:
        batch *= accumulated(args)
        return LengthGroupedSampler(batch, world_size, lengths=dataset.lengths, variable_length=True)
    return None
