"""How large the noise of each weight is: z = size * noise (Malladi et al. 2023, appendix B).

    none     1 for all
    norms    in proportion to the norm of the weight
    rms      in proportion to the root mean square of its elements
    FILE     a JSON object of patterns of names and sizes: {"*layernorm*": 10, "*.mlp.*": 2}; the first pattern that
             fits counts, and 1 where none does

norms and rms are those of the weights before the first step, scaled so that the mean of size^2 over all elements is 1
(eps and rates keep their meaning); a weight of zeros has the size 1. Sizes are rounded to four digits, so that no
device's order of summation shows.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import torch
from torch import nn

from llava.mezo.errors import InputError
from llava.mezo.held import is_sharded, local_part
from llava.mezo.names import names_in_files

KINDS = ("none", "norms", "rms")
SMALLEST, LARGEST = 1e-9, 1e9
"""Of sizes in a file: what is far beyond is a mistake, and no number of float32 once it is multiplied by eps."""


def tensor_sizes(kind: str, model: nn.Module, weights: Sequence[nn.Parameter]) -> tuple[float, ...]:
    """The size of each weight's noise, in their order; empty for none.

    Args:
        kind: of `KINDS`, or a file.
        weights: of the model; a tied one goes by each of its names.

    Raises:
        ValueError: the file cannot be read, has a size out of range, or a pattern that fits no weight.
    """
    if kind == "none":
        return ()
    if kind not in KINDS:
        names = names_in_files(model)
        return _from_patterns(kind, read_patterns(kind), [names[weight] for weight in weights])
    sizes, counts = [_norm(weight) for weight in weights], [weight.numel() for weight in weights]
    if kind == "rms":
        sizes = [size / math.sqrt(count) for size, count in zip(sizes, counts, strict=True)]
    squares = sum(size * size * count for size, count in zip(sizes, counts, strict=True) if size)
    total = sum(count for size, count in zip(sizes, counts, strict=True) if size)
    usual = math.sqrt(squares / total) if total else 1.0
    return tuple(_rounded(size / usual) if size else 1.0 for size in sizes)


def read_patterns(file: str) -> dict[str, float]:
    """The file's patterns. ValueError as in `tensor_sizes`, for all that shows without weights."""
    try:
        patterns = json.loads(Path(file).read_text(encoding="utf-8"), object_pairs_hook=_without_repeats)
    except FileNotFoundError as error:
        raise ValueError(f"tensor_scales is {file!r}; it must be one of {', '.join(KINDS)} or a JSON file") from error
    except (OSError, ValueError) as error:
        raise ValueError(f"tensor_scales {file}: cannot be read ({error})") from error
    if not isinstance(patterns, dict) or not patterns:
        raise ValueError(f"tensor_scales {file}: it must hold a JSON object of patterns of names and sizes")
    for pattern, size in patterns.items():
        if isinstance(size, bool) or not isinstance(size, (int, float)) or not SMALLEST <= size <= LARGEST:
            raise ValueError(
                f"tensor_scales {file}: the size of {pattern!r} is {size!r}; it must be a number from {SMALLEST:g} to "
                f"{LARGEST:g}"
            )
    return {pattern: float(size) for pattern, size in patterns.items()}


def _without_repeats(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        raise ValueError("a pattern is there twice")
    return found


def _from_patterns(file: str, patterns: Mapping[str, float], names: Sequence[Sequence[str]]) -> tuple[float, ...]:
    found = [next((p for p in patterns if any(fnmatchcase(name, p) for name in own)), None) for own in names]
    idle = [pattern for pattern in patterns if pattern not in found]
    if idle:
        raise InputError(
            f"tensor_scales {file}: {idle[0]!r} decides no trained weight; their names are like {names[0][0]!r}"
        )
    return tuple(1.0 if pattern is None else _rounded(patterns[pattern]) for pattern in found)


def _norm(weight: torch.Tensor) -> float:
    norm = torch.linalg.vector_norm(local_part(weight), dtype=torch.float64)
    if not is_sharded(weight):
        return float(norm)
    squares = norm.square()
    torch.distributed.all_reduce(squares)
    return math.sqrt(float(squares))


def _rounded(size: float) -> float:
    return float(f"{size:.4g}")
