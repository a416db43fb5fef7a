"""Flags of adapters: which of them a kind reads, what goes together, and what a kind is trained with by default."""

from __future__ import annotations

import logging
from collections.abc import Collection
from dataclasses import dataclass
from typing import Any

from llava.errors import InputError
from llava.model.adapter_kinds import ADAPTERS, FROM_WEIGHTS, LORA_FAMILY, VIRTUAL_TOKENS
from llava.train.parts.tunable import LANGUAGE_MODEL, PROJECTOR, RATES, parse_parts, parts_of_flags
from llava.train.zo.settings import CLASSIFICATION

logger = logging.getLogger(__name__)

SAME = {"adapter_r": "lora_r", "adapter_alpha": "lora_alpha", "adapter_dropout": "lora_dropout"}
"""Our flags and LLaVA-NeXT's names of them."""
OF_LAYERS = tuple(kind for kind in ADAPTERS if kind not in ("none", *VIRTUAL_TOKENS))
READ_BY = {
    "r": (*LORA_FAMILY, "mora", "houlsby"),
    "alpha": LORA_FAMILY,
    "dropout": tuple(kind for kind in LORA_FAMILY if kind not in FROM_WEIGHTS),
    "bias": LORA_FAMILY,
    "targets": OF_LAYERS,
    "tokens": VIRTUAL_TOKENS,
}
"""Kinds that a flag, of `--adapter_*` or `--lora_*`, has an effect with."""
ON_PROJECTOR = (*LORA_FAMILY, "mora")
OTHER_PARTS = {
    "mm_tunable_parts",
    "tune_mm_mlp_adapter",
    "freeze_mm_mlp_adapter",
    "unfreeze_mm_vision_tower",
    "vision_tower",
    "pretrain_mm_mlp_adapter",
}
"""Flags that say what else is trained, or bring a projector that is new and has to be."""


@dataclass(frozen=True)
class Defaults:
    """What a kind of adapter is trained with where the flags do not say.

    Attributes:
        zo_rate, zo_eps: of MeZO.
        rate: of AdamW.
    """

    zo_rate: float
    zo_eps: float
    rate: float

    def rate_of(self, trainer_mode: str) -> float:
        """The learning rate in a trainer mode."""
        return self.zo_rate if trainer_mode == "zo" else self.rate


DEFAULTS = {
    "lora": Defaults(5e-4, 1e-2, 1e-3),
    "rslora": Defaults(3e-5, 3e-3, 3e-4),
    "dora": Defaults(3e-4, 1e-2, 1e-3),
    "pissa": Defaults(3e-5, 1e-3, 1e-4),
    "milora": Defaults(1e-4, 1e-3, 3e-4),
    "mora": Defaults(3e-5, 1e-3, 3e-4),
    "prefix": Defaults(1e-1, 2e-1, 3e-2),
    "prompt": Defaults(2e-1, 1e-1, 1e-2),
    "houlsby": Defaults(5e-4, 1e-2, 1e-3),
    "ia3": Defaults(1e-2, 3e-2, 1e-2),
    "ln": Defaults(3e-3, 3e-2, 1e-2),
}
"""Of the tiny model on a drawn task with options: docs/reproduction.md, "Adapters", which says what was tried."""


def given_kind(values: Any) -> str:
    """`--adapter`, for which `--lora_enable True` stands as well."""
    return "lora" if values.lora_enable and values.adapter == "none" else str(values.adapter)


def check_adapter(values: Any, given: Collection[str]) -> None:
    """`InputError` for flags of adapters that do not go together, or that this kind does not read."""
    if values.adapter not in ADAPTERS:
        raise InputError(f"--adapter {values.adapter}: allowed are {', '.join(ADAPTERS)}")
    if values.lora_enable and values.adapter not in ("none", "lora"):
        raise InputError(f"--lora_enable True excludes --adapter {values.adapter}: give one of them")
    kind = given_kind(values)
    for ours, theirs in SAME.items():
        both = getattr(values, ours), getattr(values, theirs)
        if {ours, theirs} <= set(given) and both[0] != both[1]:
            raise InputError(f"--{theirs} {both[1]} is another name of --{ours} {both[0]}: give one of them")
    _check_read(values, given, kind)
    targets = parse_parts(values.adapter_targets, "adapter_targets")
    if kind == "none":
        return
    if PROJECTOR in targets and kind not in ON_PROJECTOR and kind not in VIRTUAL_TOKENS:
        raise InputError(
            f"--adapter_targets {values.adapter_targets}: --adapter {kind} has nothing to change in a projector; leave "
            f"{PROJECTOR} out, or give one of {', '.join(ON_PROJECTOR)}"
        )
    _check_trained(values, targets)
    _check_beside(values, given)
    if values.bits != 16 and kind in FROM_WEIGHTS:
        raise InputError(
            f"--adapter {kind} starts from the weights' singular vectors, which --bits {values.bits} hides"
        )
    if kind in VIRTUAL_TOKENS:
        _check_virtual_tokens(values, given, kind)


def _check_read(values: Any, given: Collection[str], kind: str) -> None:
    for flag, kinds in READ_BY.items():
        value = getattr(values, f"adapter_{flag}", None)
        if f"adapter_{flag}" in given and kind not in kinds and not (flag == "dropout" and value == 0):
            raise InputError(
                f"--adapter_{flag} {value} has no effect with --adapter {kind}: leave it out, or give --adapter "
                f"{' or '.join(kinds)}"
            )


def _check_trained(values: Any, targets: frozenset[str]) -> None:
    """A part is trained itself, or adapted: the adapter of one whose weights move would be lost in them."""
    parts = values.mm_tunable_parts
    for part in sorted(targets - {LANGUAGE_MODEL}):
        if parts is None or part in parse_parts(parts):
            raise InputError(
                f"--adapter_targets {values.adapter_targets}: --mm_tunable_parts {parts} trains {part} itself; give "
                f"--mm_tunable_parts {LANGUAGE_MODEL} to train the adapter alone"
            )


def _check_beside(values: Any, given: Collection[str]) -> None:
    """The default rate of a kind is of its own weights: others would be overwritten by that of some kinds."""
    beside = _beside(values)
    missing = [RATES[part] for part in beside if not {"learning_rate", RATES[part]} & set(given)]
    if values.adapter != "none" and missing:
        raise InputError(
            f"--adapter {values.adapter} with {', '.join(beside)} trained beside it: its default rate is too large for "
            f"whole weights; give {' and '.join(f'--{name}' for name in missing)}, or --mm_tunable_parts "
            f"{LANGUAGE_MODEL} to train the adapter alone"
        )


def _beside(values: Any) -> list[str]:
    """The parts whose own weights are trained beside an adapter."""
    return sorted(parts_of_flags(values, values) - {LANGUAGE_MODEL})


def _check_virtual_tokens(values: Any, given: Collection[str], kind: str) -> None:
    if values.zo_objective in ("accuracy", CLASSIFICATION) and values.trainer_mode == "zo":
        raise InputError(
            f"--zo_objective {values.zo_objective} excludes --adapter {kind}, in front of the model: give loss"
        )
    if values.use_pos_skipping:
        raise InputError(f"--use_pos_skipping True excludes --adapter {kind}, whose tokens have the first positions")
    checkpointing = {"gradient_checkpointing", "activation_checkpointing"} & set(given)
    if kind == "prefix" and any(getattr(values, name) for name in checkpointing):
        raise InputError("--gradient_checkpointing True excludes --adapter prefix, which uses a cache: leave it out")


def settle_parts(values: Any, given: Collection[str]) -> None:
    """An adapter is trained alone unless flags name other parts; `--lora_enable` has LLaVA-NeXT's, projector too."""
    if values.adapter != "none" and not OTHER_PARTS & set(given):
        values.mm_tunable_parts = LANGUAGE_MODEL  # which stands for the adapter


def settle_adapter(values: Any, given: Collection[str]) -> None:
    """Write what follows from the kind of adapter into the flags that were not given."""
    kind = given_kind(values)
    for ours, theirs in SAME.items():
        if ours in given:
            setattr(values, theirs, getattr(values, ours))
        setattr(values, ours, getattr(values, theirs))
    if kind in FROM_WEIGHTS:
        values.lora_dropout = values.adapter_dropout = 0.0  # it would drop principal parts of the weights
    if kind == "prefix":
        values.gradient_checkpointing = False
    defaults, beside = DEFAULTS.get(kind), _beside(values)
    if defaults is None:
        return
    if values.adapter == "none" and beside:  # --lora_enable, as LLaVA-NeXT has it
        _warn_of_rate(values, given)
        return
    settle_rate(values, given, defaults.rate_of(values.trainer_mode), f"--adapter {kind}")
    if values.trainer_mode == "zo" and "zo_eps" not in given and not beside:
        values.zo_eps = defaults.zo_eps  # one for all weights, and larger than many of a projector's with some kinds


def settle_rate(values: Any, given: Collection[str], rate: float, of: str) -> None:
    """Take the rate that goes with another flag, `of`, where `--learning_rate` was not given."""
    if "learning_rate" not in given:
        values.learning_rate = rate
        message = "--learning_rate %g, the default of %s, found on a model of 1.8M parameters: larger models want less"
        logger.warning(message, rate, of)


def _warn_of_rate(values: Any, given: Collection[str]) -> None:
    """LLaVA-NeXT's default is for gradients; a rate for LoRA would be too large for the projector beside it."""
    if values.trainer_mode == "zo" and "learning_rate" not in given:
        logger.warning(
            "--lora_enable True trains the projector too, at --learning_rate %g, with which MeZO hardly moves LoRA: "
            "--adapter lora has LoRA alone, with rate and eps of its own",
            values.learning_rate,
        )
