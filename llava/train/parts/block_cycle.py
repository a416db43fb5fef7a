"""All weights trained, one block of layers at a time: the memory of one block's gradients, moments and masters.

Luo et al. 2024, "BAdam: A Memory Efficient Full Parameter Optimization Method for Large Language Models", algorithm 1:
for some steps Adam runs on one block, from moments of zero; then the next block is drawn, each once a cycle, in an
order of the seed's. A block is one layer of the language model or the tower; what is trained outside of all layers
(projector, last norm, `image_newline`) is one more. Word embeddings and head, whose moments and masters alone would
take more than the rest of a small model, stay as they are, as in the authors' code.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

from torch import nn
from torch.optim import Optimizer

from llava.errors import InputError
from llava.train.parts.master_weights import MasterWeights
from llava.train.parts.param_groups import Groups

Named = dict[str, nn.Parameter]


def blocks_of(model: Any) -> tuple[list[Named], Named]:
    """Trained parameters of each block, in the model's order, and those of no block: word embeddings and head."""
    trained = {name: p for name, p in model.named_parameters() if p.requires_grad}
    tables = [module for module in (model.get_input_embeddings(), model.get_output_embeddings()) if module is not None]
    outside = {id(p) for table in tables for p in table.parameters()}
    layers = [
        f"{name}.{number}."
        for name, module in model.named_modules()
        if isinstance(module, nn.ModuleList)
        for number in range(len(module))
    ]
    blocks: dict[str, Named] = {layer: {} for layer in [*layers, ""]}
    for name, parameter in trained.items():
        if id(parameter) not in outside:
            blocks[next((layer for layer in layers if name.startswith(layer)), "")][name] = parameter
    left_out = {name: p for name, p in trained.items() if id(p) in outside}
    return [block for block in blocks.values() if block], left_out


class BlockCycle:
    """Which block is trained, its masters, and the optimizer that has its weights alone.

    Args:
        model: with `requires_grad` where something is to be trained.
        groups: parameter groups of all that is trained.
        make: makes an optimizer of groups, some of which are empty.
        steps: how many a block is trained before the next one.
        seed: of the blocks' order.

    Raises:
        InputError: there is one block, or none.
    """

    def __init__(
        self, model: nn.Module, groups: Groups, make: Callable[[Groups], Optimizer], steps: int, seed: int
    ) -> None:
        self._model, self._steps, self._seed = model, steps, seed
        self._trained = {name: p for name, p in model.named_parameters() if p.requires_grad}
        self._blocks, self.left_out = blocks_of(model)
        if len(self._blocks) < 2:
            raise InputError(
                f"--cycle_blocks {steps}: what is trained has {len(self._blocks)} blocks of layers, and it takes two: "
                "name more --mm_tunable_parts, or leave it out"
            )
        self._members = [list(group["params"]) for group in groups]
        self._visit, self._done = 0, 0
        self.masters = MasterWeights(nn.Module())  # none yet
        self.optimizer = make([{**group, "params": []} for group in groups])
        self.optimizer.register_step_pre_hook(lambda *_: self.masters.take_gradients())
        self.optimizer.register_step_post_hook(lambda *_: self._end_step())
        self._enter()

    @property
    def trained(self) -> int:
        """Number of weights that are trained, in all blocks."""
        return sum(p.numel() for block in self._blocks for p in block.values())

    def state_dict(self) -> dict[str, int]:
        """Which of the blocks, counted from the first of the run, and how many steps it has had."""
        return {"visit": self._visit, "done": self._done}

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Go to that block; its moments and masters are still to be loaded."""
        self._visit, self._done = state["visit"], state["done"]
        self._enter()

    def finish(self) -> None:
        """All that was trained requires gradients again, for what asks which weights those are."""
        for parameter in self._trained.values():
            parameter.requires_grad_(True)

    def block(self, visit: int) -> Named:
        """The block of a visit: each comes once in as many visits as there are blocks."""
        cycle, place = divmod(visit, len(self._blocks))
        order = list(range(len(self._blocks)))
        random.Random(f"{self._seed} {cycle}").shuffle(order)
        return self._blocks[order[place]]

    def _end_step(self) -> None:
        self.masters.give_weights()
        self._done += 1
        if self._done >= self._steps:
            self._visit, self._done = self._visit + 1, 0
            self._enter()

    def _enter(self) -> None:
        active = {id(p) for p in self.block(self._visit).values()}
        for parameter in self._trained.values():
            parameter.requires_grad_(id(parameter) in active)
            parameter.grad = None
        self.optimizer.state.clear()
        for group in self.optimizer.param_groups:
            group["params"] = []
        self.masters = MasterWeights(nn.Module())  # the last block's go before the next one's come
        self.masters = MasterWeights(self._model)
        chosen = [{"params": [p for p in members if id(p) in active]} for members in self._members]
        for group, own in zip(self.optimizer.param_groups, self.masters.replace(chosen), strict=True):
            group["params"] = own["params"]
