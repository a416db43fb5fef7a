"""Zeroth-order fine-tuning (MeZO) for any torch model: weights untouched by perturbation, noise as a pure function.

Needs torch and NumPy; uses numba where it is installed. Imports nothing else of `llava`.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from llava.mezo.config import MeZOConfig
    from llava.mezo.measuring import StepResult
    from llava.mezo.names import no_decay_names
    from llava.mezo.optimizer import MeZO
    from llava.mezo.perturb import Perturbation
    from llava.mezo.reuse import reuse_outputs

__all__ = ["MeZO", "MeZOConfig", "Perturbation", "StepResult", "no_decay_names", "reuse_outputs"]

_HOMES = {"MeZO": "optimizer", "MeZOConfig": "config", "Perturbation": "perturb"}
_HOMES |= {"StepResult": "measuring", "no_decay_names": "names", "reuse_outputs": "reuse"}


def __getattr__(name: str) -> object:
    """Public names once they are asked for: who reads a journal, or trains otherwise, imports no kernels."""
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_HOMES[name]}"), name)
