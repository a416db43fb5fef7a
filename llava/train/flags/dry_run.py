"""What only building shows: optimizer, scheduler and reporters of a run, made once for a parameter of one element."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn
from transformers import Trainer, get_scheduler
from transformers.integrations import get_reporting_integration_callbacks

from llava.errors import InputError

RATES = ("learning_rate", "mm_projector_lr", "mm_vision_tower_lr", "weight_decay")


def dry_run(args: Any) -> None:
    """Build what the trainer will build of these training arguments.

    Raises:
        InputError: with the flag's name for what cannot be built, before anything is loaded.
    """
    for name in RATES:
        rate = getattr(args, name)
        if rate is not None and not (math.isfinite(rate) and rate >= 0):
            raise InputError(f"--{name} {rate}: a finite number of at least 0 is needed")
    optimizer: torch.optim.Optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=args.learning_rate)
    if args.trainer_mode == "regular" and not args.deepspeed:
        with _naming(f"--optim {args.to_dict()['optim']}"):
            kind, options = Trainer.get_optimizer_cls_and_kwargs(args)
            optimizer = kind([nn.Parameter(torch.zeros(1))], **options)
    with _naming(f"--lr_scheduler_type {args.to_dict()['lr_scheduler_type']}"):
        more = args.lr_scheduler_kwargs or {}
        get_scheduler(args.lr_scheduler_type, optimizer, 1, 10, scheduler_specific_kwargs=dict(more))
    for reporter in args.report_to:
        with _naming(f"--report_to {reporter}"):
            for callback in get_reporting_integration_callbacks([reporter]):
                callback()


@contextmanager
def _naming(flag: str) -> Iterator[None]:
    """Whatever is raised inside becomes an `InputError` that names the flag."""
    try:
        yield
    except Exception as error:  # packages that are missing, settings that do not fit: of many kinds
        raise InputError(f"{flag} cannot be used: {' '.join(str(error).split())}") from error
