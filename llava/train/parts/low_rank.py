"""GaLore among the trainer's parameter groups, and its state as plain values.

Zhao et al. 2024, "GaLore: Memory-Efficient LLM Training by Gradient Low-Rank Projection". transformers says which
weights are projected; the groups are this tree's, so that weight decay and rates of parts hold as for any optimizer.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch.optim import Optimizer

from llava.train.parts.param_groups import Groups, numbered

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


def load_plain_state(optimizer: Optimizer, state_dict: dict[str, Any]) -> None:
    """Load what `plain_state` gave, with projectors that are objects again.

    They do not pass through torch's own loading, which takes a word, as the kind of a projection, apart.
    """
    of_all = state_dict["state"]
    rest = {n: {name: v for name, v in of_one.items() if name != _PROJECTOR} for n, of_one in of_all.items()}
    optimizer.load_state_dict({**state_dict, "state": rest})
    for number, parameter in numbered(optimizer, state_dict):
        if _PROJECTOR in of_all.get(number, {}):
            from galore_torch.galore_projector import GaLoreProjector

            projector = GaLoreProjector.__new__(GaLoreProjector)
            vars(projector).update(of_all[number][_PROJECTOR])
            matrix, device = projector.ortho_matrix, parameter.device
            projector.ortho_matrix = [m.to(device) for m in matrix] if isinstance(matrix, list) else matrix.to(device)
            optimizer.state[parameter][_PROJECTOR] = projector
