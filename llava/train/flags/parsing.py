"""From a command line to checked arguments: everything that can be refused without loading anything is.

Exclusions are named here, and those of MeZO in `llava.train.zo.settings`, with the flag to change.
"""

from __future__ import annotations

import difflib
import importlib.util
import logging
import sys
from collections.abc import Collection, Sequence
from types import SimpleNamespace
from typing import Any, NoReturn

import torch
import transformers

from llava.conversation import get_template
from llava.errors import InputError
from llava.mm_utils import image_processing
from llava.model.multimodal_projector.builder import build_vision_projector
from llava.samples.settings import SampleSettings
from llava.train.flags.arguments import (
    STRATIFY,
    TRAINER_MODES,
    DataArguments,
    ModelArguments,
    TrainingArguments,
    hand_on,
)
from llava.train.flags.dry_run import dry_run
from llava.train.objectives import score_of
from llava.train.parts.adapters import ADAPTERS
from llava.train.parts.tunable import parse_parts
from llava.train.zo.settings import Settings, refuse_impossible

logger = logging.getLogger(__name__)

LEAST = {
    "gradient_accumulation_steps": 1,
    "per_device_train_batch_size": 1,
    "per_device_eval_batch_size": 1,
    "dataloader_num_workers": 0,
    "model_max_length": 1,
    "lora_r": 1,
    "lora_alpha": 1,
    "lora_dropout": 0,
}
"""Smallest values of flags whose range neither transformers nor torch looks at in time."""

Arguments = tuple[ModelArguments, DataArguments, TrainingArguments]


class _Parser(transformers.HfArgumentParser):
    """Says in one line what is wrong with a flag, in place of argparse's page of usage."""

    def error(self, message: str) -> NoReturn:
        raise InputError(message)


def parse_arguments(argv: Sequence[str] | None = None) -> Arguments:
    """Arguments of a run from `argv` (default: the command line); `InputError` for anything that cannot work."""
    argv = list(sys.argv[1:] if argv is None else argv)
    classes: Any = (ModelArguments, DataArguments, TrainingArguments)
    parser = _Parser(classes)
    _refuse_unknown(parser, argv)
    given = {word.split("=", 1)[0][2:].replace("-", "_") for word in argv if word.startswith("--")}
    values = parser.parse_args(argv)
    check_run(values, given)
    try:
        arguments = parser.parse_args_into_dataclasses([*argv, *_adjustments(values, given)])
    except InputError:
        raise
    except (ValueError, ImportError) as error:  # transformers' own checks, and packages that a flag needs
        raise InputError(str(error)) from error
    model_args, data_args, training_args = arguments
    check_model_arguments(model_args)
    check_data_arguments(data_args)
    dry_run(training_args)
    model_args.given = given
    # The trainer sees the run's arguments alone, and saving depends on what is tuned.
    for name in ("mm_tunable_parts", "tune_mm_mlp_adapter"):
        setattr(training_args, name, getattr(model_args, name))
    data_args.seed = training_args.seed
    hand_on(model_args, data_args)
    return model_args, data_args, training_args


def _adjustments(values: Any, given: set[str]) -> list[str]:
    """Flags that follow from the machine and from the trainer mode; they come last and so win."""
    extra = []
    if values.trainer_mode == "zo":
        extra += ["--gradient_checkpointing", "False"]  # a default that has no meaning there
        if values.zo_journal and not given & {"save_strategy", "save_steps"}:
            extra += ["--save_strategy", "no"]  # the journal keeps every step
    if not torch.cuda.is_available() and not torch.backends.mps.is_available():
        extra += ["--use_cpu", "True"]  # transformers refuses --bf16 True on a CPU that was not asked for
        if values.tf32:
            logger.warning("--tf32 True has no effect without a CUDA device")
            extra += ["--tf32", "False"]
    return extra


def check_model_arguments(args: ModelArguments) -> None:
    """Unknown names and parts that this tree leaves out."""
    get_template(args.version)
    if args.mm_tunable_parts is not None:
        parse_parts(args.mm_tunable_parts)
    if args.tune_mm_vision_resampler or args.mm_resampler_type not in (None, "identity"):
        raise InputError(
            "resamplers are not supported: leave out --tune_mm_vision_resampler and --mm_resampler_type; "
            "video features are pooled by --mm_spatial_pool_stride"
        )
    if args.s2:
        raise InputError("--s2: multi-scale towers are not supported; allowed: SigLIP and CLIP towers at one scale")
    build_vision_projector(SimpleNamespace(mm_projector_type=args.mm_projector_type, mm_hidden_size=1, hidden_size=1))
    if (args.rope_scaling_factor is None) != (args.rope_scaling_type is None):
        raise InputError("--rope_scaling_factor and --rope_scaling_type go together: set both or none")


def check_data_arguments(args: DataArguments) -> None:
    """Only what the flags alone can show; files are looked at by `llava.train.flags.preflight`."""
    if args.data_path is None:
        raise InputError("--data_path is missing: a LLaVA JSON, JSONL or YAML mixture")
    image_processing(args.image_aspect_ratio)
    SampleSettings.of(args)


def check_run(values: Any, given: set[str]) -> None:
    """Ranges of the run's flags, and what excludes what.

    Args:
        values: the flags as attributes, before transformers looks at them.
        given: names of the flags on the command line, since some defaults give way to the trainer mode
            while the same value given by hand is refused.
    """
    _one_of("trainer_mode", values.trainer_mode, TRAINER_MODES)
    _one_of("adapter", values.adapter, ADAPTERS)
    if values.lora_enable and values.adapter not in ("none", "lora"):
        raise InputError(f"--lora_enable True excludes --adapter {values.adapter}: give one of them")
    _one_of("lora_bias", values.lora_bias, ("none", "all", "lora_only"))
    _one_of("stratify_answers", values.stratify_answers, STRATIFY)
    _one_of("bits", values.bits, (4, 8, 16))
    _one_of("quant_type", values.quant_type, ("nf4", "fp4"))
    _one_of("attn_implementation", values.attn_implementation, ("flash_attention_2", "sdpa", "eager"))
    for name, least in LEAST.items():
        if getattr(values, name) < least:
            raise InputError(f"--{name} {getattr(values, name)} must be at least {least}")
    if values.max_steps == 0:
        raise InputError("--max_steps 0 would train nothing: give a number of steps, or -1 for --num_train_epochs")
    if values.max_steps < 0 and not values.num_train_epochs > 0:
        raise InputError(f"--num_train_epochs {values.num_train_epochs} would train nothing: it must be above 0")
    if not values.mm_feature_cache_gb > 0:
        raise InputError(f"--mm_feature_cache_gb {values.mm_feature_cache_gb} must be above 0")
    if values.trainer_mode == "zo":
        _check_zeroth_order(values, given)
    else:
        Settings.of(values)  # ranges alone
    # asked here because transformers would look for it only after changing global state
    if values.deepspeed and importlib.util.find_spec("deepspeed") is None:
        raise InputError(f"--deepspeed {values.deepspeed} needs DeepSpeed: pip install 'llava[deepspeed]'")


def _check_zeroth_order(values: Any, given: set[str]) -> None:
    if values.gradient_checkpointing and "gradient_checkpointing" in given:
        raise InputError(
            "--gradient_checkpointing True excludes --trainer_mode zo, which has no backward pass: leave it out"
        )
    refuse_impossible(values)
    score_of(values.zo_objective)
    if "optim" in given and values.optim != "adamw_torch":
        raise InputError(f"--optim {values.optim} has no effect with --trainer_mode zo: leave it out")


def _one_of(name: str, value: Any, allowed: Collection[Any]) -> None:
    if value not in allowed:
        raise InputError(f"--{name} {value}: allowed are {', '.join(map(str, allowed))}")


def _refuse_unknown(parser: transformers.HfArgumentParser, argv: Sequence[str]) -> None:
    """One line for a mistyped flag, in place of argparse's page of usage."""
    known = [option for action in parser._actions for option in action.option_strings]
    for word in argv:
        name = word.split("=", 1)[0]
        if name.startswith("--") and not name[2:3].isdigit() and name not in known:
            close = difflib.get_close_matches(name, known, n=3)
            raise InputError(f"unknown flag {name}" + (f"; did you mean {' or '.join(close)}?" if close else ""))
