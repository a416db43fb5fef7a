"""Forward with perturbed parameters; the stored weights are read and never written.

How a read becomes a perturbed one:

    layer.weight                          some code, anywhere in a forward
      module._parameters["weight"]        a stand-in for the module's table of parameters (`StandIn`)
        Perturbation.read(parameter)      within a forward of its unit (`units.py`): from the copies of all of the
                                          unit, made at its first read and dropped when that forward returns;
                                          from elsewhere (an output head, LLaVA's image_newline): a table, of which
                                          only what is used is made (`tables.py`)
          Passes.fetch                    for all forwards that run side by side at once (`passes.py`)
            TrainedWeights.perturbed      weight + scale * z into scratch memory (`trained.py`)

`model.parameters()`, `named_parameters()` and `state_dict()` go on giving the stored parameters. Where a forward runs
elsewhere than the model is (`OtherReads`), all modules have stand-ins, since what is not perturbed has to be read from
there, too.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any

import torch
from torch import nn

from llava.mezo.algorithms.interface import Point
from llava.mezo.inference import evaluation_mode
from llava.mezo.passes import SIDE_BY_SIDE_ON, Passes
from llava.mezo.reuse import replaced_forward
from llava.mezo.tables import PerturbedTable
from llava.mezo.trained import Copies, OtherReads, TrainedWeights
from llava.mezo.units import find_units, owned_parameters

logger = logging.getLogger(__name__)


class Perturbation:
    """Perturbed passes through `model` for `parameters`, whose places in the list are their numbers in `weights`.

    With weights in shards, frozen parameters are among them.

        with perturbation.attached():
            perturbation.weights.aim((Point.along(seed, eps), Point.along(seed, -eps)))
            plus, minus = perturbation.run(loss, 2)

    `attached` puts the model into evaluation mode without autograd and installs the stand-ins; `run` calls a function
    at each of the points that were aimed at. Both leave the model as it was, also when the forward raises.
    """

    def __init__(self, model: nn.Module, parameters: Sequence[nn.Parameter], weights: TrainedWeights) -> None:
        self.model = model
        self.weights = weights
        self.parameters = list(parameters)
        self.numbers = {parameter: number for number, parameter in enumerate(parameters)}
        self._passes = Passes()
        self._stand_ins: list[StandIn] = []
        self._split: set[nn.Module] = set()
        self._hooks = ExitStack()
        self._reads = 0
        self._keep = False
        self._warned = False
        self._arrange()  # refuses now what could not work later
        self._others: OtherReads | None = weights.other_reads(model, self.numbers, self._passes)

    def _arrange(self) -> None:
        """Find the units: which module's forward a weight is perturbed in, and with which others."""
        self._modules = list(self.model.modules())
        self._units = find_units(self.model, self.numbers, self._split, apart=self.weights.apart)
        self._groups: dict[tuple[nn.Module, int], tuple[int, ...]] = {}
        self._units_of: dict[int, list[nn.Module]] = {}
        for module, unit in self._units.items():
            for group in unit.groups:
                numbers = tuple(self.numbers[p] for p in group)
                self._groups |= dict.fromkeys(((module, number) for number in numbers), numbers)
                for number in numbers:
                    self._units_of.setdefault(number, []).append(module)
        owned = ((module, owned_parameters(module)) for module in self._modules)
        self._owners = {
            module: own for module, all_ in owned if (own := {n: p for n, p in all_.items() if p in self.numbers})
        }
        missing = set(self.numbers).difference(*(own.values() for own in self._owners.values()))
        if missing:
            shapes = ", ".join(sorted(str(tuple(p.shape)) for p in missing))
            raise ValueError(
                f"{len(missing)} trained parameters (shapes {shapes}) are not in the model that is perturbed"
            )

    def use(self, weights: TrainedWeights) -> None:
        """Others in the place of these, of the same parameters."""
        self.weights = weights
        self._others = weights.other_reads(self.model, self.numbers, self._passes)

    def _changed(self) -> bool:
        """Whether modules or parameters of the model are others than when the units were found."""
        owned = ((module._parameters, own) for module, own in self._owners.items())
        return list(self.model.modules()) != self._modules or any(
            stored.get(name) is not p for stored, own in owned for name, p in own.items()
        )

    @contextmanager
    def attached(self) -> Iterator[Perturbation]:
        """Install the stand-ins for any number of passes."""
        if self._stand_ins:
            raise RuntimeError("this perturbation is attached already; passes do not nest")
        self.weights.refresh()
        if self._changed():
            self._arrange()
            self._others = self.weights.other_reads(self.model, self.numbers, self._passes)
        with ExitStack() as stack, torch.no_grad():
            stack.callback(self._stand_ins.clear)
            for stand_in in self._made_stand_ins():
                self._stand_ins.append(stand_in)
                stack.callback(stand_in.detach)
            self._hooks = stack.enter_context(ExitStack())
            self._watched: set[nn.Module] = set()
            self._watch()
            if self._others is not None:
                self._others.watch(self._hooks)
            stack.enter_context(evaluation_mode(self.model))
            yield self

    @property
    def is_attached(self) -> bool:
        """Whether the stand-ins are installed."""
        return bool(self._stand_ins)

    @contextmanager
    def plain(self) -> Iterator[None]:
        """Within it the model's forward runs, with weights as they are, wherever it is; also while attached."""
        if self._stand_ins or self._others is None:
            yield
        else:
            with self.attached():
                yield

    def _made_stand_ins(self) -> Iterator[StandIn]:
        if self._others is None:
            return (StandIn(module, self.read) for module in self._owners)
        return self._others.stand_ins(self._modules, self.read)

    def run(self, function: Callable[[], Any], points: int, keep: bool = False) -> list[Any]:
        """What `function` gives at each of so many points that `weights.aim` was given; only while attached.

        On a GPU two calls run side by side, see `passes.py`.

        Args:
            keep: copies are kept for all forwards of a call, as one has many (generation): the memory of all trained
                weights for the time it saves. Calls run one after the other then. Not of weights in shards, which
                would be whole on each process, and not of offloaded ones.
        """
        elsewhere = self._others is not None
        self._keep = keep and not (self.weights.sharded or elsewhere)
        try:
            with self._pass():
                devices = {device.type for device in self.weights.tables} | (SIDE_BY_SIDE_ON if elsewhere else set())
                devices = set() if keep or self.weights.sharded else devices
                return self._passes.run(partial(self._to_the_end, function), points, devices)
        finally:
            self._keep = False

    @contextmanager
    def at(self, seed: int, scale: float) -> Iterator[None]:
        """Parameters read as weight + scale * z(seed). Only while attached."""
        with self._pass():
            self.weights.aim((Point.along(seed, scale),))
            with self._passes.single(0):
                yield
                self.weights.finish(0)

    def _to_the_end(self, function: Callable[[], Any]) -> Any:
        """What a forward gives, when it has ended on all processes that share its weights."""
        result = function()
        self.weights.finish(self._passes.running.number)
        return result

    @contextmanager
    def _pass(self) -> Iterator[None]:
        if not self._stand_ins:
            raise RuntimeError("choose a point inside `with perturbation.attached()`")
        if self._passes.current is not None:
            raise RuntimeError("a pass is running already; passes do not nest")
        self._reads = 0
        yield
        if self._reads == 0 and self.weights.perturbs and not self._warned:
            self._warned = True
            logger.warning(
                "mezo: the loss read none of the trained parameters, so it cannot depend on them. This is right for a "
                "batch that does not reach the trained part, and wrong if the loss runs another copy of the model."
            )

    def read(self, parameter: nn.Parameter) -> Any:
        """What a read of `parameter` gives now."""
        lane, number = self._passes.current, self.numbers.get(parameter)
        if lane is None or number is None:
            return parameter if self._others is None else self._others.parameter(parameter)
        self._reads += number < len(self.weights.storages)
        if self._keep:
            if number not in lane.copies:
                lane.copies |= self._fetch_alone(number)
            return lane.copies[number]
        running = next((unit for unit in self._units_of.get(number, ()) if lane.depth.get(unit)), None)
        if running is not None:
            if number not in lane.copies:
                group = self._groups[running, number]
                if lane.made.setdefault(running, set()).isdisjoint(group):
                    lane.copies |= self._passes.fetch(group, partial(self.weights.perturbed, group))
                    lane.made[running].update(group)
                else:  # its owner has returned, and is read again
                    lane.copies |= self._fetch_alone(number)
            return lane.copies[number]
        if number not in lane.kept:
            there = parameter if self._others is None else self._others.listed(parameter)
            alone = parameter.dim() == 0
            lane.kept |= self._fetch_alone(number) if alone else {number: PerturbedTable.make(there, self, number)}
        return lane.kept[number]

    def _fetch_alone(self, number: int) -> Copies:
        copies: Copies = self._passes.fetch(("alone", number), partial(self.weights.perturbed, (number,)))
        return copies

    def rows(self, number: int, rows: torch.Tensor) -> torch.Tensor:
        """Rows `rows` [...] of a matrix [V, D], as [..., D]; each forward asks for its own."""
        return self.weights.rows(number, rows, [self._passes.running.number])[0]

    def span(self, number: int, first: int, last: int) -> torch.Tensor:
        """Slices first ... last - 1 of a weight along dimension 0."""
        span: torch.Tensor = self._passes.fetch((number, first, last), partial(self.weights.span, number, first, last))
        return span

    def whole(self, number: int) -> torch.Tensor:
        """All of a weight."""
        self._run_by_parts(number)
        return self.span(number, 0, self.parameters[number].shape[0])

    def _run_by_parts(self, number: int) -> None:
        """A layer whose weights are used while it is not running: its modules become units of their own from now on."""
        layers = [unit for unit in self._units.values() if unit.layer and (unit.module, number) in self._groups]
        if layers:
            logger.info("mezo: parts of %s are run, and so perturbed, by themselves", type(layers[0].module).__name__)
            self._split.update(unit.module for unit in layers)
            self._arrange()
            self._watch()

    def _watch(self) -> None:
        """Be told when units run and when owners return, whose copies go then; until the stand-ins go."""
        for module in {**self._units, **self._owners}:
            if module in self._watched:
                continue
            self._watched.add(module)
            if module in self._units:
                handles = (
                    module.register_forward_pre_hook(partial(self._enter, module), prepend=True),
                    module.register_forward_hook(partial(self._leave, module), always_call=True),
                )
                for handle in handles:
                    self._hooks.callback(handle.remove)
            else:  # a hook takes ten times as long to install, and there are hundreds of these
                self._hooks.enter_context(replaced_forward(module, partial(self._forward, module, module.forward)))

    def _enter(self, watched: nn.Module, module: nn.Module, inputs: Any) -> None:
        if module is not watched:
            raise RuntimeError(
                "the loss runs a replica of the model (nn.DataParallel); its weights would not be perturbed. Use one "
                "process per device instead (torchrun)"
            )
        lane = self._passes.current
        if lane is not None:
            lane.depth[module] = lane.depth.get(module, 0) + 1

    def _leave(self, watched: nn.Module, module: nn.Module, inputs: Any, output: Any) -> None:
        lane = self._passes.current
        if lane is None or not lane.depth.get(watched):
            return
        lane.depth[watched] -= 1
        if lane.depth[watched] == 0:
            for number in lane.made.pop(watched, ()):
                lane.copies.pop(number, None)

    def _forward(self, module: nn.Module, forward: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        try:
            return forward(*args, **kwargs)
        finally:
            lane = self._passes.current
            if lane is not None and not self._keep:
                for parameter in self._owners[module].values():
                    lane.copies.pop(self.numbers[parameter], None)


class StandIn(dict[str, Any]):
    """Stand-in for a module's table of parameters. Assignments reach the module's own table as well.

    `[name]`, which is how nn.Module reads an attribute, is perturbed. Listing (`items`, `values`, `get`) gives what is
    stored.
    """

    table = "_parameters"

    def __init__(self, module: nn.Module, read: Callable[[Any], Any]) -> None:
        self.module = module
        self.stored = module.__dict__[self.table]
        self.read = read
        super().__init__(self.stored)
        module.__dict__[self.table] = self

    def detach(self) -> None:
        """Put the module's own table back."""
        self.module.__dict__[self.table] = self.stored

    def __getitem__(self, name: str) -> Any:
        value = super().__getitem__(name)
        return None if value is None else self.read(value)

    def __setitem__(self, name: str, value: Any) -> None:
        super().__setitem__(name, value)
        self.stored[name] = value

    def __delitem__(self, name: str) -> None:
        super().__delitem__(name)
        del self.stored[name]
