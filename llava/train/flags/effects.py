"""Flags that would have no effect: refused where they were given, so that nothing is asked for in vain.

A value that asks for nothing (as False, 0, none, no or off) is taken everywhere. What scripts of LLaVA-NeXT pass all
the same is warned about; so are flags that another one has switched off, since whoever adds to a script's flags cannot
take one away.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass, fields
from functools import partial
from typing import Any

import torch

from llava.errors import InputError
from llava.train.flags.adapter_flags import READ_BY, given_kind
from llava.train.flags.arguments import DataArguments, ModelArguments, TrainingArguments
from llava.train.flags.renamed_flags import OTHER_NAMES
from llava.train.flags.validation_flags import validates
from llava.train.parts.tunable import LANGUAGE_MODEL, PROJECTOR, VISION_TOWER, adapter_only, parse_parts
from llava.train.zo.settings import Settings, flag_of, settings_without_effect

logger = logging.getLogger(__name__)

Values = Any
"""The flags as attributes, before transformers looks at them."""


@dataclass(frozen=True)
class Rule:
    """Flags without effect.

    Attributes:
        flags: their names.
        why: the rest of a sentence that begins with the flag.
        when: whether they have none in this run.
        refused: or else warned about.
    """

    flags: tuple[str, ...]
    why: str
    when: Callable[[Values], bool] = lambda values: True
    refused: bool = True


def _named(*kinds: type, beginning: str = "", help: str = "") -> tuple[str, ...]:
    """Fields whose names begin so, and whose help has this in it."""
    every = [one for kind in kinds for one in fields(kind)]
    return tuple(f.name for f in every if f.name.startswith(beginning) and help in f.metadata.get("help", ""))


def _needs(name: str, value: str = "True") -> dict[str, Any]:
    """What a rule says of flags that belong to another one which is off."""
    return {"why": f"has no effect without --{name} {value}", "when": lambda values: not _asks(values, name)}


def _asks(values: Values, name: str) -> bool:
    """Whether a flag's value asks for something; without a default, that may be 0 or any word."""
    value = getattr(values, name)
    if DEFAULTS[name] is None and name != "evaluation_strategy":
        return not (value is None or value is False or value == "")
    return bool(value) and value not in ("no", "none", "off")


def _zo(values: Values) -> bool:
    return values.trainer_mode == "zo"


def _trains(values: Values, part: str) -> bool:
    return values.mm_tunable_parts is None or part in parse_parts(values.mm_tunable_parts)


def _is_other_kind(kinds: Collection[str], values: Values) -> bool:
    return given_kind(values) not in kinds


def _checkpointing(values: Values) -> Any:
    own = getattr(values, "activation_checkpointing", values.gradient_checkpointing)  # from transformers 5.18 on
    return values.gradient_checkpointing if own is None else own


DEFAULTS = {f.name: f.default for kind in (ModelArguments, DataArguments, TrainingArguments) for f in fields(kind)}
GROUPING = ("group_by_length", "group_by_modality_length", "group_by_modality_length_auto", "group_by_varlen")

RULES = (
    Rule(
        (
            "eval_strategy",
            "evaluation_strategy",
            "do_eval",
            "eval_on_start",
            "eval_steps",
            "eval_delay",
            "eval_metric",
            "load_best_model_at_end",
            "early_stopping_patience",
        ),
        "has no effect without --eval_data_path FILE, the records to evaluate on",
        lambda v: not validates(v),
    ),
    Rule(("per_device_eval_batch_size", "per_gpu_eval_batch_size"), **_needs("eval_data_path", "FILE"), refused=False),
    Rule(
        (
            "do_predict",
            "eval_accumulation_steps",
            "prediction_loss_only",
            "bf16_full_eval",
            "fp16_full_eval",
            "batch_eval_metrics",
            "eval_use_gather_object",
            "include_for_metrics",
            "include_inputs_for_metrics",
            "metric_for_best_model",
            "greater_is_better",
        ),
        "cannot be used: --eval_metric says what is measured, and what is better. Leave it out",
    ),
    Rule(
        ("save_strategy",),
        "cannot be used: --load_best_model_at_end True keeps the best. Give steps, epoch or no",
        lambda v: v.save_strategy == "best",
    ),
    Rule(
        ("lr_scheduler_type",),
        "cannot be used: it follows a metric, and schedules here follow the step. Give another one",
        lambda v: v.lr_scheduler_type in ("reduce_lr_on_plateau", "greedy"),
    ),
    Rule(
        ("remove_unused_columns", "length_column_name", "label_names"),
        "is for data sets with columns, and cannot be used with a LLaVA JSON: leave it out",
    ),
    Rule(
        ("average_tokens_across_devices",),
        "has no effect: the loss is a mean over each micro-batch, as in LLaVA-NeXT. Leave it out",
    ),
    Rule(
        ("label_smoothing_factor", "neftune_noise_alpha"),
        "cannot be used: it is for models of text, and here images take the place of words inside the model. Leave it "
        "out",
    ),
    Rule(("use_liger_kernel",), "cannot be used: Liger's kernels know no LLaVA model. Leave it out"),
    Rule(("liger_kernel_config",), **_needs("use_liger_kernel")),
    Rule(
        (
            "optim",
            "optim_args",
            "optim_target_modules",
            "cycle_blocks",
            "adafactor",
            "adam_beta1",
            "adam_beta2",
            "adam_epsilon",
            "max_grad_norm",
            "activation_checkpointing",
            "gradient_checkpointing_kwargs",
            "activation_checkpointing_kwargs",
            "lora_dropout",
            "adapter_dropout",
            "use_pos_skipping",
            "ddp_find_unused_parameters",
            "ddp_bucket_cap_mb",
            "ddp_broadcast_buffers",
            "ddp_static_graph",
            "torch_empty_cache_steps",
            "torch_compile_backend",
            "torch_compile_mode",
            "torchdynamo",
            "fsdp_config",
        ),
        "has no effect with --trainer_mode zo, which has no backward pass, no gradients and no torch optimizer, and "
        "takes losses in evaluation mode: leave it out",
        _zo,
    ),
    Rule(
        _named(TrainingArguments, beginning="zo_"),
        "has no effect with --trainer_mode regular: leave it out, or give --trainer_mode zo",
        lambda v: not _zo(v),
    ),
    Rule(
        ("zo_length_bucket", "zo_graph_memory_gb"),
        "has no effect without a CUDA device and --zo_cuda_graphs auto",
        lambda v: v.use_cpu or not torch.cuda.is_available() or not _asks(v, "zo_cuda_graphs"),
        refused=False,
    ),
    Rule(
        ("zo_check_ranks_steps", "zo_graph_memory_gb"),
        "has no effect with --zo_shard fsdp: no process has a copy of another's weights, and no graph is recorded",
        lambda v: _asks(v, "zo_shard"),
    ),
    Rule(
        ("zo_cuda_graphs", "zo_graph_memory_gb"),
        "has no effect with --zo_offload cpu, whose weights have no place of their own on the device",
        lambda v: v.zo_offload == "cpu",
        refused=False,
    ),
    Rule(("zo_journal_sync_steps",), **_needs("zo_journal")),
    Rule(("zo_anchor_batches",), "has no effect without --zo_estimator svrg", lambda v: v.zo_estimator != "svrg"),
    Rule(
        ("gradient_checkpointing_kwargs", "activation_checkpointing_kwargs"),
        "has no effect without --gradient_checkpointing True",
        lambda v: not _checkpointing(v),
    ),
    Rule(("fsdp_config",), **_needs("fsdp", "...")),
    Rule(
        (
            "push_to_hub",
            "hub_model_id",
            "hub_token",
            "hub_strategy",
            "hub_private_repo",
            "hub_always_push",
            "hub_revision",
            "push_to_hub_model_id",
            "push_to_hub_token",
        ),
        "cannot be used: leave it out, and upload what is saved with `hf upload`",
    ),
    Rule(
        ("project", "trackio_space_id", "trackio_bucket_id", "trackio_static_space_id"),
        "has no effect without --report_to trackio",
        lambda v: not {"trackio", "all"} & set(_list(v.report_to)),
    ),
    Rule(
        ("logging_dir",),
        "has no effect without --report_to tensorboard",
        lambda v: not {"tensorboard", "all"} & set(_list(v.report_to)),
        refused=False,
    ),
    *(
        Rule(
            (f"lora_{name}",),
            "has no effect without --lora_enable True or --adapter of that kind",
            partial(_is_other_kind, READ_BY[name]),
            refused=False,
        )
        for name in ("r", "alpha", "dropout", "bias")
    ),
    Rule(("quant_type", "double_quant"), "has no effect without --bits 4", lambda v: v.bits != 4),
    Rule(("mm_feature_cache_gb",), **_needs("mm_feature_cache", "FOLDER")),
    Rule(("faster_token_stride",), **_needs("add_faster_video")),
    Rule(("pos_skipping_range",), **_needs("use_pos_skipping")),
    Rule(
        ("words_per_image",),
        "has no effect without --group_by_length or --group_by_varlen",
        lambda v: not (v.group_by_length or v.group_by_varlen),
    ),
    Rule(
        ("early_mix_text",),
        "has no effect without --group_by_modality_length or --group_by_modality_length_auto",
        lambda v: not (v.group_by_modality_length or v.group_by_modality_length_auto),
    ),
    Rule(
        (*GROUPING, "train_sampling_strategy"),
        "excludes the other flags that order the data: give one of "
        f"{', '.join(f'--{name}' for name in GROUPING)} and --train_sampling_strategy",
        lambda v: sum([*(bool(getattr(v, name)) for name in GROUPING), v.train_sampling_strategy != "random"]) > 1,
    ),
    Rule(
        ("stratify_answers",),
        "has no effect on an order by length: leave it out, or group by --group_by_modality_length alone",
        lambda v: bool(v.group_by_length or v.group_by_modality_length_auto or v.group_by_varlen),
    ),
    Rule(
        ("warmup_steps", "warmup_ratio", "lr_scheduler_kwargs"),
        "has no effect with --lr_scheduler_type constant: leave it out, or give another schedule",
        lambda v: v.lr_scheduler_type == "constant",
    ),
    Rule(
        ("lr_scheduler_kwargs",),
        "has no effect with --lr_scheduler_type constant_with_warmup: leave it out",
        lambda v: v.lr_scheduler_type == "constant_with_warmup",
    ),
    Rule(
        ("save_steps",),
        "has no effect without --save_strategy steps",
        lambda v: v.save_strategy != "steps",
        refused=False,
    ),
    Rule(("save_total_limit", "save_only_model"), **_needs("save_strategy", "steps"), refused=False),
    Rule(
        ("logging_steps",),
        "has no effect without --logging_strategy steps",
        lambda v: v.logging_strategy != "steps",
        refused=False,
    ),
    Rule(
        ("tunable_layers",),
        f"has no effect where the language model is frozen: add {LANGUAGE_MODEL} to --mm_tunable_parts",
        lambda v: (
            adapter_only(v) or not _trains(v, LANGUAGE_MODEL) or (v.mm_tunable_parts is None and v.freeze_backbone)
        ),
    ),
    Rule(
        ("tunable_layers", "freeze_vectors"),
        "is about the model's own weights, and excludes --adapter and --bits 4 or 8: leave one of them out",
        lambda v: given_kind(v) != "none" or v.bits != 16,
    ),
    Rule(
        ("mm_projector_lr",),
        f"has no effect: --mm_tunable_parts lacks {PROJECTOR}",
        lambda v: not _trains(v, PROJECTOR),
        refused=False,
    ),
    Rule(
        ("mm_vision_tower_lr",),
        f"has no effect: --mm_tunable_parts lacks {VISION_TOWER}",
        lambda v: not _trains(v, VISION_TOWER),
        refused=False,
    ),
    Rule(
        _named(ModelArguments, TrainingArguments, help="legacy: "),
        "has no effect beside --mm_tunable_parts",
        lambda v: v.mm_tunable_parts is not None,
        refused=False,
    ),
    Rule(
        _named(ModelArguments, TrainingArguments, help="unused"),
        "is for scripts of LLaVA-NeXT alone, and has no effect here",
        refused=False,
    ),
    Rule(
        _named(ModelArguments, DataArguments, help="only kept in the config"),
        "is written into the model's config, and has no other effect",
        refused=False,
    ),
)


def check_effects(values: Values, given: Collection[str]) -> None:
    """Refuse, or warn about, flags that were given and have no effect.

    Args:
        given: names of the flags on the command line.

    Raises:
        InputError: for the first that is refused.
    """
    for rule in _rules(values):
        for name in rule.flags:
            if name not in given or not _asks(values, name) or not rule.when(values):
                continue
            text = f"--{name} {shown(getattr(values, name))} {rule.why}"
            if rule.refused:
                raise InputError(text)
            logger.warning(text)
    for old, new in OTHER_NAMES:
        both = [getattr(values, name) for name in (old, new) if name in given and _asks(values, name)]
        if len(both) == 2 and both[0] != both[1]:
            raise InputError(f"--{old} {both[0]} is another name of --{new} {both[1]}: give one of them")
    if not values.do_train and "do_train" in given:
        raise InputError("--do_train False: this command trains; leave it out")


def _rules(values: Values) -> Iterator[Rule]:
    yield from RULES
    if _zo(values):
        unread = tuple(map(flag_of, settings_without_effect(Settings.of(values).config)))
        algorithm = f"--zo_estimator {values.zo_estimator} and --zo_rule {values.zo_rule}"
        yield Rule(unread, f"has no effect with {algorithm}: leave it out")


def _list(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [value]


def shown(value: Any) -> str:
    """A flag's value as it was given."""
    return " ".join(map(str, _list(value)))
