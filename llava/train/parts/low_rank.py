"""GaLore among the trainer's parameter groups, and its state as plain values.

Zhao et al. 2024, "GaLore: Memory-Efficient LLM Training by Gradient Low-Rank Projection". transformers says which
weights are projected; the groups are this tree's, so that weight decay and rates of parts hold as for any optimizer.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch.optim import Optimizer

Groups = list[dict[str, Any]]

_PROJECTOR = "projector"


def split_groups(groups: Groups, chosen: Groups) -> Groups:
    """This tree's groups, each followed by one of those of its weights that are projected.

    Args:
        chosen: transformers' groups: all other weights, and the projected ones with the settings of the projection.
    """
    projected = {id(p) for p in chosen[1]["params"]}
    settings = {name: value for name, value in chosen[1].items() if name != "params"}
    split = []
    for group in groups:
        split.append({**group, "params": [p for p in group["params"] if id(p) not in projected]})
        split.append({**group, **settings, "params": [p for p in group["params"] if id(p) in projected]})
    return split


def plain_state(state_dict: Mapping[str, Any]) -> dict[str, Any]:
    """The state of an optimizer with its projectors, which are objects, as dictionaries."""
    states = {
        number: {name: vars(value) if name == _PROJECTOR else value for name, value in of_one.items()}
        for number, of_one in state_dict["state"].items()
    }
    return {**state_dict, "state": states}


def revive_projectors(optimizer: Optimizer) -> None:
    """Objects again, after a state of `plain_state` was loaded."""
    for of_one in optimizer.state.values():
        if isinstance(of_one.get(_PROJECTOR), dict):
            from galore_torch.galore_projector import GaLoreProjector

            projector = GaLoreProjector.__new__(GaLoreProjector)
            vars(projector).update(of_one[_PROJECTOR])
            of_one[_PROJECTOR] = projector
