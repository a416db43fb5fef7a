"""Which layers of a language model run."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import nn


@contextmanager
def passed_over(modules: Iterable[nn.Module]) -> Iterator[None]:
    """Within it, these layers (or norms) give back the hidden states that they are given."""
    with ExitStack() as stack:
        for module in modules:
            own = module.__dict__
            if "forward" in own:
                stack.callback(own.__setitem__, "forward", own["forward"])
            else:
                stack.callback(own.pop, "forward")
            own["forward"] = _given_back
        yield


def _given_back(hidden_states: torch.Tensor, *others: Any, **named: Any) -> torch.Tensor:
    return hidden_states
