"""From a command line to checked arguments: everything that can be refused without loading anything is.

Exclusions are named here, and those of MeZO in `llava.train.zo.settings`, with the flag to change.
"""

from __future__ import annotations

import difflib
import importlib.util
import logging
import os
import sys
from collections.abc import Collection, Iterator, Sequence
from dataclasses import fields
from types import SimpleNamespace
from typing import Any, NoReturn, TypeVar

import torch
import transformers

from llava.conversation import get_template
from llava.errors import InputError, in_one_line
from llava.mm_utils import expand_grid_pinpoints, image_processing
from llava.model.load_settings import quantisation
from llava.model.merge_plan import MergePlan
from llava.model.multimodal_encoder.clip_encoder import SELECT_FEATURES
from llava.model.multimodal_projector.builder import build_vision_projector
from llava.samples.loading import FORMS
from llava.samples.settings import SampleSettings
from llava.train.flags.adapter_flags import check_adapter, given_kind, settle_adapter, settle_parts
from llava.train.flags.algorithm_flags import settle_algorithm
from llava.train.flags.arguments import (
    STRATIFY,
    TRAINER_MODES,
    DataArguments,
    ModelArguments,
    TrainingArguments,
    hand_on,
)
from llava.train.flags.dry_run import dry_run
from llava.train.flags.effects import check_effects, shown
from llava.train.flags.learning_rate import number_or_auto, settle_learning_rate
from llava.train.flags.optimizers import check_optimizer, settle_fused
from llava.train.flags.ranges import check_numbers
from llava.train.flags.validation_flags import check_validation_flags, settle_validation
from llava.train.objectives import chooses, score_of
from llava.train.parts.build import class_of
from llava.train.parts.fused_optimizers import FUSED
from llava.train.parts.tunable import LANGUAGE_MODEL, adapter_only, parse_layers, parse_parts
from llava.train.zo.device_settings import DeviceSettings, refuse_placement
from llava.train.zo.settings import Settings, refuse_impossible

logger = logging.getLogger(__name__)

ROPE_TYPES = ("linear", "dynamic", "yarn")  # those that a factor is enough for
SAMPLING = ("random", "sequential", "group_by_length")
T = TypeVar("T")
Arguments = tuple[ModelArguments, DataArguments, TrainingArguments]


class _Parser(transformers.HfArgumentParser):
    """Says in one line what is wrong with a flag, in place of argparse's page of usage."""

    def error(self, message: str) -> NoReturn:
        raise InputError(message)


def _parser() -> _Parser:
    return _Parser((ModelArguments, DataArguments, TrainingArguments))  # type: ignore[arg-type]


def parse_arguments(argv: Sequence[str] | None = None) -> Arguments:
    """Arguments of a run from `argv` (default: the command line); `InputError` for anything that cannot work."""
    argv = list(sys.argv[1:] if argv is None else argv)
    parser = _parser()
    options = {name: action.dest for action in parser._actions for name in action.option_strings}
    parser._option_string_actions["--learning_rate"].type = number_or_auto
    given = {options[name] for name in _names(options, argv)}
    values, strays = parser.parse_known_args(argv)
    if strays:
        place = len(argv) - 1 - argv[::-1].index(strays[-1])
        flag = next((word for word in reversed(argv[:place]) if word.split("=", 1)[0] in options), "the command")
        raise InputError(f"{flag}: what is {strays[-1]!r} behind it?")
    finds_rate = settle_learning_rate(values)
    settle_parts(values, given)
    settle_algorithm(values, given)
    check_run(values, given)
    check_effects(values, given)
    _adjust(values, given)
    model_args: Any = _of(ModelArguments, values)
    data_args: Any = _of(DataArguments, values)
    check_model_arguments(model_args, data_args)
    check_data_arguments(data_args)
    model_args.given = given
    training_args = build(values, given)
    # The trainer sees the run's arguments alone, and saving depends on what is tuned.
    for name in ("mm_tunable_parts", "tune_mm_mlp_adapter"):
        setattr(training_args, name, getattr(model_args, name))
    training_args.finds_learning_rate = finds_rate  # type: ignore[misc]
    data_args.seed = training_args.seed
    hand_on(model_args, data_args)
    return model_args, data_args, training_args


def flag_types() -> dict[str, Any]:
    """All flags of a run, without their dashes, and what makes a value of each one's text: int, float or another."""
    types = {name: action.type for action in _parser()._actions for name in action.option_strings}
    return {name[2:]: kind for name, kind in types.items() if name.startswith("--") and name != "--help"}


def build(values: Any, given: Collection[str]) -> TrainingArguments:
    """The training arguments, tried out by a dry run.

    Raises:
        InputError: whatever transformers, torch or a package that a flag needs says against them; with the flags
            without which they do not say it.
    """
    try:
        arguments = _of(TrainingArguments, values)
        dry_run(arguments)
        return arguments
    except InputError:
        raise
    except Exception as error:  # of many kinds
        said = _said(error)
        defaults = {one.name: one.default for one in fields(TrainingArguments) if one.init and one.name in given}
        guilty = [name for name in defaults if _complaint({**vars(values), name: defaults[name]}) != said]
        flags = " with ".join(f"--{name} {shown(getattr(values, name))}" for name in guilty)
        raise InputError(f"{flags} cannot be used: {said}" if flags else said) from error


def _complaint(values: dict[str, Any]) -> str | None:
    """What is said against these values; None for nothing."""
    try:
        dry_run(_of(TrainingArguments, SimpleNamespace(**values)))
    except Exception as error:
        return _said(error)
    return None


def _said(error: Exception) -> str:
    return in_one_line(error) or type(error).__name__


def _of(kind: type[T], values: Any) -> T:
    """The dataclass with those of these attributes that it has."""
    return kind(**{one.name: getattr(values, one.name) for one in fields(kind) if one.init})  # type: ignore[arg-type]


def _adjust(values: Any, given: Collection[str]) -> None:
    """Flags that follow from the machine, the trainer mode and the adapter."""
    settle_adapter(values, given)
    settle_validation(values, given)
    if values.trainer_mode == "zo":
        values.gradient_checkpointing = False  # a default that has no meaning there
        if values.zo_quantized_scales:
            values.double_quant = False
        if values.zo_journal and not {"save_strategy", "save_steps"} & set(given):
            values.save_strategy = "no"  # the journal keeps every step
    elif values.optim in FUSED:
        settle_fused(values, given)
    if not torch.cuda.is_available() and not torch.backends.mps.is_available():
        values.use_cpu = True  # transformers refuses --bf16 True on a CPU that was not asked for
        if values.tf32:
            logger.warning("--tf32 True has no effect without a CUDA device")
            values.tf32 = False


def check_model_arguments(args: ModelArguments, data_args: DataArguments) -> None:
    """Unknown names and parts that this tree leaves out."""
    get_template(args.version)
    if args.mm_tunable_parts is not None:
        parse_parts(args.mm_tunable_parts)
    if args.tunable_layers is not None:
        parse_layers(args.tunable_layers)
    if args.tune_mm_vision_resampler or args.mm_resampler_type not in (None, "identity"):
        raise InputError(
            "resamplers are not supported: leave out --tune_mm_vision_resampler and --mm_resampler_type; "
            "video features are pooled by --mm_spatial_pool_stride"
        )
    if args.s2:
        raise InputError("--s2: multi-scale towers are not supported; allowed: SigLIP and CLIP towers at one scale")
    if args.model_class_name is not None:
        class_of(args.model_class_name, args.vision_tower)
    MergePlan.from_config(SimpleNamespace(**vars(data_args), **vars(args)))
    _one_of("mm_vision_select_feature", args.mm_vision_select_feature, SELECT_FEATURES)
    build_vision_projector(SimpleNamespace(mm_projector_type=args.mm_projector_type, mm_hidden_size=1, hidden_size=1))
    if (args.rope_scaling_factor is None) != (args.rope_scaling_type is None):
        raise InputError("--rope_scaling_factor and --rope_scaling_type go together: set both or none")
    if args.rope_scaling_type is not None:
        _one_of("rope_scaling_type", args.rope_scaling_type, ROPE_TYPES)


def check_data_arguments(args: DataArguments) -> None:
    """Only what the flags alone can show; files are looked at by `llava.train.flags.preflight`."""
    if args.data_path is None:
        raise InputError(f"--data_path is missing: give {FORMS}")
    image_processing(args.image_aspect_ratio)
    SampleSettings.of(args)
    if args.image_grid_pinpoints is not None:
        expand_grid_pinpoints(args.image_grid_pinpoints, patch_size=1)


def check_run(values: Any, given: Collection[str]) -> None:
    """Ranges of the run's flags, and what excludes what.

    Args:
        values: the flags as attributes, before transformers looks at them.
        given: names of the flags on the command line, since some defaults give way to the trainer mode
            while the same value given by hand is refused.
    """
    _one_of("trainer_mode", values.trainer_mode, TRAINER_MODES)
    check_adapter(values, given)
    _one_of("lora_bias", values.lora_bias, ("none", "all", "lora_only"))
    _one_of("stratify_answers", values.stratify_answers, STRATIFY)
    _one_of("bits", values.bits, (4, 8, 16))
    _one_of("quant_type", values.quant_type, ("nf4", "fp4"))
    _one_of("attn_implementation", values.attn_implementation, ("flash_attention_2", "sdpa", "eager"))
    _one_of("train_sampling_strategy", values.train_sampling_strategy, SAMPLING)
    for name in ("output_dir", "mm_feature_cache"):
        if getattr(values, name) == "":
            raise InputError(f"--{name} is empty: name a folder, or leave it out")
    if values.max_steps == 0:
        raise InputError("--max_steps 0 would train nothing: give a number of steps, or -1 for --num_train_epochs")
    if values.max_steps < 0 and not values.num_train_epochs > 0:
        raise InputError(f"--num_train_epochs {values.num_train_epochs} would train nothing: it must be above 0")
    check_numbers(values)
    check_validation_flags(values, given)
    if values.trainer_mode == "zo":
        _check_zeroth_order(values, given)
    else:
        Settings.of(values)  # ranges alone
        DeviceSettings.of(values)
        check_optimizer(values, given)
    quantisation(values.bits == 8, values.bits == 4)
    _check_bits(values, given)
    # asked here because transformers would look for it only after changing global state
    if values.deepspeed and importlib.util.find_spec("deepspeed") is None:
        raise InputError(f"--deepspeed {values.deepspeed} needs DeepSpeed: pip install -e '.[deepspeed]'")
    if values.deepspeed and "RANK" not in os.environ and importlib.util.find_spec("mpi4py") is None:
        raise InputError(f"--deepspeed {values.deepspeed} needs a launcher, for one process too: start with torchrun")


def _check_bits(values: Any, given: Collection[str]) -> None:
    """What of a base in 4 or 8 bits can be trained."""
    adapted = given_kind(values) != "none"
    if values.zo_quantized_scales:
        if values.bits == 16:
            raise InputError("--zo_quantized_scales True needs a base with scales: give --bits 4 or 8")
        if adapted:
            raise InputError(
                "--zo_quantized_scales True excludes --adapter: the scales are trained in place of weights"
            )
        if values.bits == 4 and values.double_quant and "double_quant" in given:
            raise InputError(
                "--double_quant True excludes --zo_quantized_scales True: it keeps the scales themselves in 8 bits. "
                "Leave it out"
            )
        parts = values.mm_tunable_parts
        if adapter_only(values) or (parts and LANGUAGE_MODEL not in parse_parts(parts)):
            raise InputError(
                f"--zo_quantized_scales True trains scales of the language model: add {LANGUAGE_MODEL} to "
                "--mm_tunable_parts"
            )
    elif values.bits != 16 and not adapted and not adapter_only(values):
        raise InputError(
            f"--bits {values.bits}: weights in {values.bits} bits cannot be trained themselves. Give --adapter lora "
            "(or another kind), --mm_tunable_parts mm_mlp_adapter for the projector alone, or --trainer_mode zo with "
            "--zo_quantized_scales True"
        )


def _check_zeroth_order(values: Any, given: Collection[str]) -> None:
    if values.gradient_checkpointing and "gradient_checkpointing" in given:
        raise InputError(
            "--gradient_checkpointing True excludes --trainer_mode zo, which has no backward pass: leave it out"
        )
    refuse_placement(values)
    refuse_impossible(values)
    score_of(values.zo_objective)
    if chooses(values) and not values.train_on_answers_only:
        raise InputError(
            f"--zo_objective {values.zo_objective} is about the answers, and --train_on_answers_only False supervises "
            "markers of the prompt too: give --train_on_answers_only True"
        )


def _one_of(name: str, value: Any, allowed: Collection[Any]) -> None:
    if value not in allowed:
        raise InputError(f"--{name} {value}: allowed are {', '.join(map(str, allowed))}")


def _names(known: Collection[str], argv: Sequence[str]) -> Iterator[str]:
    """The flags of a command line; one line for a mistyped one, in place of argparse's page of usage."""
    for word in argv:
        name = word.split("=", 1)[0]
        if name in known:
            yield name
        elif name.startswith("--") and not name[2:3].isdigit():
            flags = {flag.replace("-", "_"): flag for flag in sorted(known)}  # of two spellings that with underscores
            close = [flags[flag] for flag in difflib.get_close_matches(name.replace("-", "_"), flags, n=3)]
            raise InputError(f"unknown flag {name}" + (f"; did you mean {' or '.join(close)}?" if close else ""))
