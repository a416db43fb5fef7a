"""Optimizer, scheduler and random-generator state of a checkpoint, as JSON and safetensors.

transformers writes these with `torch.save`, that is as pickles. Here a nested state becomes two files:
`<stem>.json` with its structure and `<stem>.safetensors` with its tensors, referred to by number.
"""

from __future__ import annotations

import json
import random
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR

from llava.mezo.durable import follow_umask
from llava.mezo.errors import InputError

_TENSOR = "__tensor__"
_TUPLE = "__tuple__"
_INT_KEYS = "__int_keys__"
_SETTINGS = ("lr", "initial_lr", "weight_decay", "betas", "eps", "momentum")


def save_state(state: Any, folder: Path, stem: str) -> None:
    """Write `state`, made of dicts, lists, tuples, tensors and plain values, to `folder/stem.*`."""
    tensors: dict[str, torch.Tensor] = {}
    structure = _encode(state, tensors)
    save_file(tensors, folder / f"{stem}.safetensors")
    follow_umask(folder / f"{stem}.safetensors")
    (folder / f"{stem}.json").write_text(json.dumps(structure), encoding="utf-8")


def load_state(folder: Path, stem: str) -> Any | None:
    """What `save_state` wrote, tensors on the CPU; None when there is no such state. InputError: it is damaged."""
    structure = folder / f"{stem}.json"
    if not structure.exists():
        return None
    try:
        tensors = load_file(folder / f"{stem}.safetensors")
        return _decode(json.loads(structure.read_text(encoding="utf-8")), tensors)
    except (KeyError, TypeError, ValueError, OSError, SafetensorError) as error:
        raise InputError(
            f"{structure} is damaged, or {stem}.safetensors beside it ({error}); delete this checkpoint to resume "
            "from an earlier one"
        ) from error


@contextmanager
def settings_of_flags(optimizer: Optimizer, scheduler: Any) -> Iterator[None]:
    """What is loaded inside brings its counters and moments; rates and the like stay those of this run's flags.

    They are what was saved unless a run goes on with changes. A schedule is a function of the step, and goes on where
    it was; one that follows the metrics (no `LambdaLR`) comes with all that it was saved with.
    """
    if not isinstance(scheduler, LambdaLR):
        yield
        return
    settings = [{name: group[name] for name in _SETTINGS if name in group} for group in optimizer.param_groups]
    rates = list(scheduler.base_lrs)
    yield
    for group, mine in zip(optimizer.param_groups, settings, strict=True):
        group.update(mine)
    scheduler.base_lrs = rates
    for group, rate, factor in zip(optimizer.param_groups, rates, scheduler.lr_lambdas, strict=True):
        group["lr"] = rate * factor(scheduler.last_epoch)
    scheduler._last_lr = [group["lr"] for group in optimizer.param_groups]


def random_states() -> dict[str, Any]:
    """States of the generators of Python, NumPy, torch and, where present, all CUDA devices."""
    keys: Any
    kind, keys, position, has_gauss, cached = np.random.get_state()
    states = {
        "python": random.getstate(),
        "numpy": (kind, torch.from_numpy(keys.astype(np.int64)), position, has_gauss, cached),
        "torch": torch.random.get_rng_state(),
    }
    if torch.cuda.is_available():
        states["cuda"] = torch.cuda.get_rng_state_all()
    return states


def set_random_states(states: dict[str, Any]) -> None:
    """Put back what `random_states` gave."""
    random.setstate(states["python"])
    kind, keys, position, has_gauss, cached = states["numpy"]
    np.random.set_state((kind, keys.numpy().astype(np.uint32), position, has_gauss, cached))
    torch.random.set_rng_state(states["torch"])
    if "cuda" in states and torch.cuda.is_available():
        torch.cuda.set_rng_state_all(states["cuda"])


def _encode(value: Any, tensors: dict[str, torch.Tensor]) -> Any:
    if isinstance(value, torch.Tensor):
        name = str(len(tensors))
        tensors[name] = value.detach().cpu().contiguous().clone()
        return {_TENSOR: name}
    if isinstance(value, dict):
        if any(isinstance(key, int) for key in value):  # JSON would turn the keys into strings
            return {_INT_KEYS: [[key, _encode(item, tensors)] for key, item in value.items()]}
        return {key: _encode(item, tensors) for key, item in value.items()}
    if isinstance(value, tuple):
        return {_TUPLE: [_encode(item, tensors) for item in value]}
    if isinstance(value, list):
        return [_encode(item, tensors) for item in value]
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    if isinstance(value, np.generic):
        return value.item()
    raise TypeError(f"a {type(value).__name__} cannot be saved without pickle")


def _decode(value: Any, tensors: dict[str, torch.Tensor]) -> Any:
    if isinstance(value, list):
        return [_decode(item, tensors) for item in value]
    if not isinstance(value, dict):
        return value
    if _TENSOR in value:
        return tensors[value[_TENSOR]]
    if _TUPLE in value:
        return tuple(_decode(item, tensors) for item in value[_TUPLE])
    if _INT_KEYS in value:
        return {key: _decode(item, tensors) for key, item in value[_INT_KEYS]}
    return {key: _decode(item, tensors) for key, item in value.items()}
