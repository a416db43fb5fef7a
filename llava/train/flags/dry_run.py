"""What only building shows: trainer, optimizer, schedule and reporters, made once for a model of one weight."""

from __future__ import annotations

import copy
import math
import tempfile
from collections.abc import Sequence
from dataclasses import fields
from types import SimpleNamespace
from typing import Any

import torch
from accelerate.state import AcceleratorState
from torch import nn
from torch.utils.checkpoint import checkpoint
from torch.utils.data import Dataset
from transformers import get_scheduler
from transformers.integrations import get_reporting_integration_callbacks

from llava.errors import InputError
from llava.train.flags.renamed_flags import checkpointing_options
from llava.train.flags.reporters import check_reporters
from llava.train.llava_trainer import LLaVATrainer
from llava.train.parts.optimizers import GALORE, with_masters
from llava.train.zo.settings import check_kernel

OF_OPTIMIZERS = ("optim_args", "optim_target_modules", "adam_beta1", "adam_beta2", "adam_epsilon")
JSON_OBJECTS = ("lr_scheduler_kwargs", "gradient_checkpointing_kwargs", "activation_checkpointing_kwargs")


class One(nn.Module):
    """A model of one weight."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(1, 1, bias=False)
        self.config = SimpleNamespace()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """The weight times x."""
        return self.layer(x)


class OneRecord(Dataset[dict[str, float]]):
    """What a trainer asks a data set for."""

    lengths: Sequence[int] = (1,)
    modality_lengths: Sequence[int] = (1,)
    answers: Sequence[str] = ("",)

    def __len__(self) -> int:
        return 1

    def __getitem__(self, index: int) -> dict[str, float]:
        return {"x": 1.0}


def dry_run(args: Any) -> None:
    """Build what the trainer will build of these training arguments, before anything is loaded.

    Raises:
        InputError: with the flag's name.
        Exception: whatever a library says, of many kinds; it may not name the flag.
    """
    check_reporters(args.report_to)
    for callback in get_reporting_integration_callbacks(args.report_to):
        callback()
    with tempfile.TemporaryDirectory() as folder:
        own = copy.copy(args)
        own.output_dir, own.report_to = folder, []
        try:
            _build(own)
        finally:
            AcceleratorState._reset_state()  # as transformers does: the run's trainer makes its own


def _build(args: Any) -> None:
    for name in JSON_OBJECTS:
        if not isinstance(getattr(args, name, None) or {}, dict):
            raise ValueError('a JSON object is needed, as {"name": 1}')
    if args.accelerator_config.dispatch_batches:
        raise InputError(
            "--dispatch_batches True, or of --accelerator_config, cannot be used: batches have lists of images of many "
            "sizes, which the main process cannot cut for the others. Leave it out"
        )
    model: Any = One()
    trainer = LLaVATrainer(model=model, args=args, train_dataset=OneRecord(), eval_dataset=OneRecord())
    trainer.get_train_dataloader()
    optimizer: torch.optim.Optimizer = torch.optim.SGD(model.parameters(), lr=args.learning_rate)
    if args.trainer_mode == "zo":
        check_kernel(args.zo_kernel, args.device.type)
    elif not args.deepspeed:
        if args.optim.value in GALORE:
            args.optim_target_modules = "all-linear"  # theirs are layers of another model
        kind, options = trainer.get_optimizer_cls_and_kwargs(args, model)
        groups = [{"params": list(model.parameters()), "weight_decay": args.weight_decay}]
        optimizer, _ = with_masters(model, kind, options, groups, masters=False)
        model(torch.ones(1, device=args.device)).backward()
        optimizer.step()
        _refuse_unread(args, trainer, (kind, options))
    _schedule(args, optimizer)
    if getattr(args, "activation_checkpointing", args.gradient_checkpointing):
        there = torch.ones(1, device=args.device, requires_grad=True)
        checkpoint(model, there, **checkpointing_options(args)).backward()
    if args.torch_compile:
        torch.compile(model, **trainer.accelerator.state.dynamo_plugin.to_kwargs())


def _refuse_unread(args: Any, trainer: LLaVATrainer, built: tuple[Any, Any]) -> None:
    """Flags of optimizers that this one is the same without."""
    defaults = {one.name: one.default for one in fields(args)}
    for name in OF_OPTIMIZERS:
        if name == "optim_target_modules" and args.optim.value in GALORE:
            continue  # which cannot do without
        given, other = getattr(args, name), copy.copy(args)
        setattr(other, name, defaults[name])
        if given != defaults[name] and trainer.get_optimizer_cls_and_kwargs(other, trainer.model) == built:
            raise InputError(f"--{name} {given} has no effect with --optim {args.to_dict()['optim']}: leave it out")


def _schedule(args: Any, optimizer: torch.optim.Optimizer) -> None:
    steps = args.max_steps if args.max_steps > 0 else 10
    warmup = args.get_warmup_steps(steps)
    more = dict(args.lr_scheduler_kwargs or {})
    scheduler = get_scheduler(args.lr_scheduler_type, optimizer, warmup, steps, scheduler_specific_kwargs=more)
    for factor in getattr(scheduler, "lr_lambdas", ()):
        for step in (0, warmup, steps // 2, steps):
            if not math.isfinite(factor(step)):
                raise ValueError(f"the rate of step {step} is not finite")
