"""The optimizers of regular training: which `--optim` there are, and how one is built for a model's groups.

All are transformers' choice and the packages', but for LOMO and AdaLomo (`fused_optimizers` says why). Weights in 16
bits have float32 masters (`master_weights`), save with those two, which round bfloat16 weights stochastically, and with
the engines of DeepSpeed and FSDP.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from llava.errors import InputError
from llava.train.parts.fused_optimizers import FUSED, FusedOptimizer
from llava.train.parts.low_rank import split_groups
from llava.train.parts.master_weights import MasterWeights
from llava.train.parts.param_groups import Groups

TORCH = ("adamw_torch", "adamw_torch_fused", "sgd", "adagrad", "rmsprop", "adafactor")
EIGHT_BITS = ("adamw_8bit", "adamw_bnb_8bit", "ademamix_8bit", "lion_8bit", "rmsprop_bnb_8bit")
BITSANDBYTES = (*EIGHT_BITS, "ademamix", "lion_32bit", "rmsprop_bnb", "rmsprop_bnb_32bit")
GALORE = ("galore_adamw", "galore_adafactor")
OPTIMIZERS = (*TORCH, *FUSED, *BITSANDBYTES, *GALORE)
"""Names of transformers whose runs are tested here, resuming included."""

_WORDS: dict[str, Any] = {"lomo": ("clip_grad_value",), "adalomo": ("clip_threshold", "decay_rate")}


def fused_options(args: Any) -> dict[str, Any]:
    """Arguments of LOMO or AdaLomo from `--learning_rate`, `--seed` and `--optim_args`.

    Raises:
        InputError: other words than theirs, or no number.
    """
    options: dict[str, Any] = {"lr": args.learning_rate, "seed": args.seed}
    for one in filter(None, (args.optim_args or "").replace(" ", "").split(",")):
        name, _, value = one.partition("=")
        try:
            if name not in _WORDS[str(args.optim.value)]:
                raise ValueError(f"{name} is not among {', '.join(_WORDS[str(args.optim.value)])}")
            options[name] = float(value)
        except ValueError as error:
            raise InputError(f"--optim_args {args.optim_args} with --optim {args.optim.value}: {error}") from error
    return options


def make_contiguous(model: nn.Module) -> None:
    """Trained weights that are transposed views, as MiLoRA's are of its decomposition, become contiguous.

    A fused step takes weights, gradients and moments as they lie in memory, and moments that are loaded are contiguous.
    """
    for parameter in model.parameters():
        if parameter.requires_grad and not parameter.is_contiguous():
            parameter.data = parameter.data.contiguous()


def with_masters(
    model: nn.Module, kind: type[torch.optim.Optimizer], options: dict[str, Any], groups: Groups, masters: bool
) -> tuple[torch.optim.Optimizer, MasterWeights | None]:
    """The optimizer for these groups, and the masters of those of its weights that have one.

    Args:
        options: what transformers gives its constructor; with GaLore, groups of its own among them.
        masters: whether weights in 16 bits are to have some; those of LOMO and AdaLomo have none.
    """
    options = dict(options)
    chosen = options.pop("params", None)
    if chosen is not None:
        groups = split_groups(groups, chosen)
    kept = MasterWeights(model) if masters and not issubclass(kind, FusedOptimizer) else None
    if kept:
        groups = kept.replace(groups)
    optimizer = kind(groups, **options)
    if kept:
        kept.attach(optimizer)
    if options.get("optim_bits") == 8:
        tables = {p for m in model.modules() if isinstance(m, nn.Embedding) for p in m.parameters()}
        _keep_tables_in_32_bits(optimizer, tables if not kept else {kept.of(p) for p in tables})
    return optimizer, kept


def _keep_tables_in_32_bits(optimizer: Any, tables: set[nn.Parameter]) -> None:
    """States of word embeddings stay in float32 in an optimizer with 8 bits, as transformers has it too.

    Few of their gradients are not zero at a time, and these are large: Dettmers et al. 2022, "8-bit Optimizers via
    Block-wise Quantization", section 2.3.

    Args:
        tables: the embeddings' weights, or their masters.
    """
    from bitsandbytes.optim import GlobalOptimManager

    manager = GlobalOptimManager.__new__(GlobalOptimManager)  # of this optimizer alone, not of the whole process
    manager.initialize()
    for number, group in enumerate(optimizer.param_groups):
        for place, parameter in enumerate(group["params"]):
            if parameter in tables:
                manager.index2config[number, place] = {"optim_bits": 32}
    optimizer.mng = manager
