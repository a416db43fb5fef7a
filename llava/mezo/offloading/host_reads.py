"""What code of a model reads while the model is on the host and its forward on a device: weights as they are.

Parameters of a running layer are on the device already. Others are tables (`tables.py`), of which only what is used is
copied. Of buffers, which are small, a copy stays.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable, Iterator
from contextlib import ExitStack
from functools import partial
from typing import Any

import torch
from torch import nn

from llava.mezo.offloading.cargo import Cargo, moves, placeholder
from llava.mezo.passes import Passes
from llava.mezo.perturb import StandIn
from llava.mezo.tables import PerturbedTable
from llava.mezo.units import owned_parameters


class HostReads:
    """Reads of parameters that are not perturbed (`OtherReads`); also a `Source` of their tables.

    Args:
        weights: an `OffloadedWeights`, which makes this.
    """

    def __init__(self, weights: Any, numbers: dict[nn.Parameter, int], passes: Passes) -> None:
        self.weights = weights
        self._trained = numbers
        self._passes = passes
        self._parameters: list[torch.Tensor] = []
        self._number_of: dict[torch.Tensor, int] = {}
        self._buffers: dict[torch.Tensor, tuple[int, torch.Tensor]] = {}
        self._placeholders: dict[torch.Tensor, torch.Tensor] = {}

    def parameter(self, parameter: torch.Tensor) -> Any:
        """What a read gives."""
        if not moves(parameter):
            return parameter
        number = self._trained.get(parameter)  # type: ignore[call-overload]
        if number is not None and self.weights.storages[number].state():
            return torch.full_like(self.listed(parameter), torch.nan)  # it is elsewhere, as on the host
        slot = self.weights.running(parameter)
        if slot is not None:
            return slot.values[parameter]["value"]
        if parameter not in self._number_of:
            self._number_of[parameter] = len(self._parameters)
            self._parameters.append(parameter)
        table = PerturbedTable.make(self.listed(parameter), self, self._number_of[parameter])
        return table if parameter.dim() else table.whole()

    def listed(self, parameter: torch.Tensor) -> torch.Tensor:
        """What a list of parameters has in its place: shape, dtype and device, and no values."""
        if not moves(parameter):
            return parameter
        if parameter not in self._placeholders:
            self._placeholders[parameter] = placeholder(parameter, self.weights.device)
        return self._placeholders[parameter]

    def buffer(self, buffer: torch.Tensor) -> torch.Tensor:
        """On the device."""
        if buffer.device == self.weights.device:
            return buffer
        version, there = self._buffers.get(buffer, (-1, buffer))
        if version != buffer._version:
            there = self.weights.bus.send(buffer)
            self._buffers[buffer] = buffer._version, there
        return there

    def stand_ins(self, modules: Iterable[nn.Module], read: Callable[[Any], Any]) -> Iterator[StandIn]:
        """For all tables of these modules."""
        for module in modules:
            if owned_parameters(module):
                yield _Parameters(module, read, self.listed)
            if module._buffers:
                yield _Buffers(module, self.buffer)

    def watch(self, hooks: ExitStack) -> None:
        """Have the weights of each layer come up for its forwards."""
        hooks.callback(self.weights.end_of_use)
        for module, block in self.weights.blocks.items():
            for handle in (
                module.register_forward_pre_hook(partial(self._come_up, block), prepend=True),
                module.register_forward_hook(partial(self._may_go, block), always_call=True),
            ):
                hooks.callback(handle.remove)

    def _come_up(self, block: Cargo, module: nn.Module, inputs: Any) -> None:
        if self._passes.current is not None:  # forwards that run side by side wait for each other here
            self._passes.fetch(block, lambda points, memory: [self.weights.land(block)] * len(points))
        self.weights.enter(block)

    def _may_go(self, block: Cargo, module: nn.Module, inputs: Any, output: Any) -> None:
        self.weights.leave(block)

    def rows(self, number: int, rows: torch.Tensor) -> torch.Tensor:
        """See `tables.Source`; looked up on the host."""
        parameter = self._parameters[number]
        self._settle(parameter)
        found: torch.Tensor = self.weights.bus.send(parameter.detach()[rows.cpu()])
        return found

    def span(self, number: int, first: int, last: int) -> torch.Tensor:
        """See `tables.Source`; copied for all forwards that run side by side at once."""
        return self._shared((number, first, last), partial(self._copy, self._parameters[number], first, last))

    def whole(self, number: int) -> torch.Tensor:
        """See `tables.Source`."""
        parameter = self._parameters[number]
        return self.span(number, 0, len(parameter) if parameter.dim() else 1)

    def _shared(self, key: Hashable, make: Callable[[], torch.Tensor]) -> torch.Tensor:
        if self._passes.current is None:
            return make()
        shared: torch.Tensor = self._passes.fetch(("as it is", key), lambda points, memory: [make()] * len(points))
        return shared

    def _settle(self, parameter: torch.Tensor) -> None:
        number = self._trained.get(parameter)  # type: ignore[call-overload]
        if number is not None:
            self.weights.settle(number)

    def _copy(self, parameter: torch.Tensor, first: int, last: int) -> torch.Tensor:
        """Slices in memory of their own, since the slot is for others, too."""
        slot = self.weights.land(self.weights.cargo_of(parameter, first, last))
        copy: torch.Tensor = slot.values[parameter]["value"].clone()
        self.weights.slots.fill_ahead()
        return copy


class _Parameters(StandIn):
    """Listing gives shapes, dtypes and the device that forwards run on."""

    def __init__(
        self, module: nn.Module, read: Callable[[Any], Any], listed: Callable[[torch.Tensor], torch.Tensor]
    ) -> None:
        super().__init__(module, read)
        self.listed = listed

    def items(self) -> Any:
        return [(name, None if value is None else self.listed(value)) for name, value in super().items()]

    def values(self) -> Any:
        return [value for _, value in self.items()]

    def get(self, name: str, default: Any = None) -> Any:
        return dict(self.items()).get(name, default)


class _Buffers(StandIn):
    """`[name]` is on the device that forwards run on."""

    table = "_buffers"
