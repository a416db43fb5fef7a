"""Zeroth-order steps as a `torch.optim.Optimizer`: forwards alone, no gradient, no state per parameter."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Collection, Hashable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from functools import partial
from numbers import Integral
from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer

from llava.mezo.algorithms.course import Course, Proposal
from llava.mezo.algorithms.interface import Point
from llava.mezo.config import MeZOConfig
from llava.mezo.errors import JournalError
from llava.mezo.held import is_sharded
from llava.mezo.journal.files import Journal
from llava.mezo.journal.fingerprint import dtype_name
from llava.mezo.journal.header import SETTINGS, Group, Header
from llava.mezo.journal.records import Record, updates_of
from llava.mezo.journal.replay import apply_records
from llava.mezo.measuring import Inputs, Loss, LossWindow, Recorder, StepResult, check_losses, mean_losses, measure
from llava.mezo.names import names_hash, numbered
from llava.mezo.perturb import Perturbation
from llava.mezo.ranks import Ranks
from llava.mezo.same_weights import check_same_weights
from llava.mezo.tensor_sizes import tensor_sizes
from llava.mezo.trained import TrainedWeights
from llava.mezo.updates import Update, can_be_applied, update_of
from llava.mezo.weights import Storage, check_storable, store

logger = logging.getLogger(__name__)


class MeZO(Optimizer):
    """Memory-efficient zeroth-order steps: by default SGD (Malladi et al. 2023, Algorithm 1), see `algorithms/`.

        optimizer = MeZO(groups, model, MeZOConfig(eps=1e-3, seed=0))
        for step, batch in enumerate(batches):
            optimizer.accumulate(step, lambda: model(**batch).loss)   # once per micro-batch
            optimizer.step()

    `groups` is what torch.optim takes: parameters, or dicts with "params" and, per group, "lr" and "weight_decay"
    (other keys are kept; a group may be empty). `lr` and `weight_decay` are for groups that name none. Learning rates
    and decay are read at each `step()`, so schedulers work as usual. Build it once: parameters are numbered here.

    `ranks` are the processes that train together; by default those of torch.distributed's default group, once it is
    initialised, as `config.parallel` arranges them. `sizes`: of each parameter's noise, in the order of `names`; by
    default what `config.tensor_scales` makes of the weights as they are.
    ValueError: a parameter that is not in the model, is frozen, or cannot be trained, as a part of a weight cannot.
    """

    def __init__(
        self,
        groups: Iterable[Any],
        model: nn.Module,
        config: MeZOConfig | None = None,
        ranks: Ranks | None = None,
        sizes: Sequence[float] | None = None,
        *,
        lr: float = 1e-6,
        weight_decay: float = 0.0,
    ) -> None:
        super().__init__(groups, {"lr": lr, "weight_decay": weight_decay})
        self.config = config or MeZOConfig()
        parameters = [p for group in self.param_groups for p in group["params"]]
        _check_trainable(parameters)
        self.device = self._device_for(parameters)
        """Where forwards run."""
        for parameter in parameters:
            check_storable(parameter)
        chosen = numbered(model, parameters)
        self.names: tuple[str, ...] = tuple(chosen.values())
        """Canonical names of the trained parameters; the position is the number that selects the noise."""
        self._ranks = ranks
        self.frozen = self._read_along(model, chosen)
        """Other parameters, which a forward reads by way of this optimizer too."""
        if sizes is None:  # before the weights are stored elsewhere, where their parameters read NaN
            sizes = tensor_sizes(self.config.tensor_scales, model, list(chosen))
        self.storages: dict[nn.Parameter, Storage] = {p: store(p, self.config.storage) for p in chosen}
        self.sizes: tuple[float, ...] = ()
        """Of each trained parameter's noise, where they differ, see `tensor_sizes.py`."""
        self.course = Course(self.config)
        """Estimator and rule, and what they remember of the steps before."""
        self.set_sizes(sizes)
        self.perturbation = Perturbation(model, [*chosen, *self.frozen], self.weights)
        self.recorder: Recorder | None = None
        """Records forwards that are functions of tensors; without it they run as they are, to the same bits."""
        self._latest: tuple[Update, ...] = ()
        """Updates since the estimator's anchor, the latest first."""
        self.last: StepResult | None = None
        """What the latest `step()` did; None before the first."""
        self.bad_steps = 0
        """Consecutive steps that were not applied because a loss was not finite."""
        self.journal: Journal | None = None
        """Where steps are recorded before they are applied. A step that it holds already is not measured again."""
        self._next = 0
        """The step that the weights are before, as far as a journal tells."""
        self._window = LossWindow()
        self._released = False

    def _device_for(self, parameters: Sequence[nn.Parameter]) -> torch.device:
        """Where forwards run, of a model with these parameters."""
        return parameters[0].device

    def _read_along(self, model: nn.Module, trained: Collection[nn.Parameter]) -> list[nn.Parameter]:
        """Parameters beside the trained ones that a forward cannot read as they are."""
        if any(map(is_sharded, model.parameters())):
            raise ValueError(f"the model is in shards, which {type(self).__name__} does not put together")
        return []

    @property
    def ranks(self) -> Ranks:
        """This process's place among those that train together."""
        return self._ranks or Ranks.here(self.config.parallel, self.config.num_directions)

    @property
    def names_hash(self) -> str:
        """sha256 of `names`, for records of a run."""
        return names_hash(self.names)

    def set_sizes(self, sizes: Sequence[float]) -> None:
        """Let the noise of each parameter have this size; empty: 1."""
        self.sizes = tuple(sizes)
        if hasattr(self, "weights"):
            self.flush()
        self.weights = self._made_weights()
        if hasattr(self, "perturbation"):
            self.perturbation.use(self.weights)
            if self.recorder is not None:
                self.recorder.clear()

    def _made_weights(self) -> TrainedWeights:
        """The trained weights, as this kind of optimizer keeps them."""
        return TrainedWeights(*self._of_weights())

    def _of_weights(self) -> tuple[list[Storage], str, str, list[int], tuple[float, ...]]:
        """What `TrainedWeights` takes."""
        group_of = {p: number for number, group in enumerate(self._used_groups) for p in group["params"]}
        groups, noise = [group_of[p] for p in self.storages], self.course.estimator.kernel_noise
        return list(self.storages.values()), noise, self.config.kernel, groups, self.sizes

    def flush(self) -> None:
        """The host's weights become what they should be, where they are offloaded; `exported` and others do it."""
        self.weights.flush()

    def plain(self) -> AbstractContextManager[None]:
        """Within it, a frozen part of the model can run by itself on `device`, wherever its weights are.

        With weights in shards as `current_weights`, unless a forward is running.
        """
        gathers = self.weights.sharded and not self.perturbation.is_attached
        return self.current_weights() if gathers else self.perturbation.plain()

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """As in torch.optim; ValueError once the parameters are numbered, or for values out of range."""
        if hasattr(self, "storages"):
            raise ValueError("MeZO numbers its parameters when it is built; give all groups to the constructor")
        super().add_param_group(param_group)
        self._check_group(len(self.param_groups) - 1)

    def _check_group(self, number: int) -> None:
        """`ValueError`: the group's rate or decay is out of range."""
        for name in ("lr", "weight_decay"):
            value = self.param_groups[number][name]
            if not (math.isfinite(value) and value >= 0):
                raise ValueError(f"{name} of group {number} is {value}; it must be at least 0")

    def accumulate(
        self,
        step: int,
        loss: Loss,
        inputs: Mapping[str, torch.Tensor] | None = None,
        weight: float = 1.0,
        keep: bool = False,
    ) -> float:
        """Measure one micro-batch of step number `step` and return the mean of its losses.

        Args:
            loss: takes nothing and returns the mean loss of the micro-batch (a float or a tensor of one element). It is
                called once for each point of the estimator (twice a direction with "spsa") that is this rank's, each
                time under perturbed weights, in evaluation mode and without autograd.
            inputs: tensors of the micro-batch, on any device. `loss` then takes them, on the device of the weights,
                gives a tensor, and depends on nothing else that changes: a `recorder` then records the forwards of a
                direction for each shape of the inputs (give the same function each time).
            weight: of the micro-batch in the mean, where they differ in size.
            keep: `loss` runs the model many times (it generates): perturbed weights are then kept for all of it, which
                takes the memory of the trained weights once more.

        RuntimeError: more micro-batches than the estimator can use. ValueError: a step or weight that is none.
        TypeError: a loss that is none.
        """
        if isinstance(step, bool) or not isinstance(step, Integral) or step < 0:
            raise ValueError(f"step is {step!r}; it must be an integer of at least 0")
        step = int(step)  # from NumPy's, of which a seed cannot be made
        if not (math.isfinite(weight) and weight >= 0):
            raise ValueError(f"weight is {weight}; it must be finite and at least 0")
        if self.course.estimator.per_example and weight != 1:
            raise ValueError(
                f"weight is {weight}; with the estimator {self.config.estimator}, of no mean, it must be 1"
            )
        if self._released:
            raise RuntimeError("the weights were released to the model; build another MeZO to train on")
        recorded, count = self._recorded(step), len(self._window)
        if self.course.estimator.adaptive and count:
            raise RuntimeError(f"the estimator {self.config.estimator} takes one micro-batch a step")
        losses = self._measure(step, loss, inputs, count, keep) if recorded is None else recorded.losses
        self._window.add(step, losses, weight)
        return sum(losses) / len(losses)

    def _measure(
        self, step: int, loss: Loss, inputs: Mapping[str, torch.Tensor] | None, number: int, keep: bool
    ) -> Sequence[float]:
        """The losses of micro-batch `number` of this rank."""
        estimator = self.course.estimator
        example = self._first_example + number if estimator.per_example else None
        if example is not None and example >= self.config.num_directions:
            raise RuntimeError(
                f"step {step} has more than {self.config.num_directions} examples (num_directions), each of which has "
                "a direction to itself"
            )
        points = self.course.points(step, example)
        losses = self._share_of(points, step, loss, inputs, keep)
        if not estimator.adaptive:
            return losses
        known = self._known(losses, len(points))
        further = self.course.further_points(step, known)
        return [*known, *self._known(self._share_of(further, step, loss, inputs, keep), len(further))]

    def _share_of(
        self, points: Sequence[Point], step: int, loss: Loss, inputs: Mapping[str, torch.Tensor] | None, keep: bool
    ) -> list[float]:
        """The losses at those of the points that are this rank's."""
        ranks = self.ranks
        if len(points) < ranks.point_ways and not self.course.estimator.adaptive:
            raise RuntimeError(
                f"step {step} takes {len(points)} losses of a batch, which cannot be shared out to {ranks.point_ways} "
                "processes (parallel)"
            )
        return self.losses_at(points[ranks.share(len(points))], loss, inputs, keep)

    def _known(self, losses: Sequence[float], points: int) -> list[float]:
        """The means over all ranks of what each measured of a micro-batch."""
        return mean_losses([losses], [1.0], points, self.ranks, self.device)

    @property
    def _first_example(self) -> int:
        """Number of this rank's first among the examples of a step."""
        return self.ranks.rank * (self.config.num_directions // self.ranks.count)

    def losses_at(
        self, points: Sequence[Point], loss: Loss, inputs: Mapping[str, torch.Tensor] | None = None, keep: bool = False
    ) -> list[float]:
        """The losses of a batch at some points, on this rank alone; no part of a step. Arguments as `accumulate`."""
        undone = self._latest[: self.course.undone]
        if any(decay != 1.0 for update in undone for decay in update.decays):
            raise ValueError(f"the estimator {self.config.estimator} cannot take back weight decay; set it to 0")
        if inputs is None:
            with self.perturbation.attached():
                return measure(points, self.weights, partial(self.perturbation.run, loss, keep=keep), undone)

        def together(count: int, tensors: Mapping[str, torch.Tensor]) -> torch.Tensor:
            with self.perturbation.attached():
                losses = self.perturbation.run(lambda: loss(tensors), count)
            check_losses(losses, torch.Tensor)
            return torch.stack([value.reshape(()) for value in losses])

        def run(count: int) -> Sequence[torch.Tensor]:
            return self.run_recorded((loss, count), partial(together, count), inputs).unbind()

        return measure(points, self.weights, run, undone)

    def run_recorded(
        self, key: Hashable, function: Callable[[Inputs], torch.Tensor], inputs: Mapping[str, torch.Tensor]
    ) -> torch.Tensor:
        """`function(inputs)` on the device of the weights, recorded if there is a recorder; see `Recorder.run`."""
        if self.recorder is None:
            return function({name: tensor.to(self.device, non_blocking=True) for name, tensor in inputs.items()})
        return self.recorder.run(key, function, inputs)

    def state_dict(self) -> dict[str, Any]:
        """As in torch.optim, what the rule remembers, and exact values of weights stored outside the model, by name."""
        self.flush()
        stored = {name: s.state() for name, s in zip(self.names, self.storages.values(), strict=True)}
        exact = {name: state for name, state in stored.items() if state}
        latest = [(update.seeds, update.coefficients, update.decays) for update in self._latest]
        course = {"course": self.course.state_dict(), "latest": latest, "sizes": self.sizes}
        return super().state_dict() | {"storage": exact} | course

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """As in torch.optim. ValueError: the weights were stored in another way, or they or the rule are others."""
        others = dict(state_dict)
        stored, course = others.pop("storage", {}), others.pop("course", None)
        latest, sizes = others.pop("latest", ()), others.pop("sizes", ())
        if course is not None:
            self.course.load_state_dict(course)
        unknown = sorted(set(stored) - set(self.names))
        if unknown:
            raise ValueError(f"the saved state has a weight {unknown[0]!r}, which is not trained now")
        super().load_state_dict(others)
        self.flush()
        for name, storage in zip(self.names, self.storages.values(), strict=True):
            storage.load(stored.get(name, {}))
        if course is not None:
            if tuple(sizes) != self.sizes:
                self.set_sizes(sizes)
            self._latest = tuple(Update(seeds, coefficients, decays) for seeds, coefficients, decays in latest)

    @contextmanager
    def current_weights(self) -> Iterator[None]:
        """Within it, a forward through the model sees the current weights, wherever they are stored; for evaluation.

        With weights in shards all processes enter and leave it together, and do nothing else together within.
        """
        if not self.weights.sharded and not any(storage.state() for storage in self.storages.values()):
            with self.plain():
                yield
            return
        with self.perturbation.attached(), self.weights.unperturbed(), self.perturbation.at(0, 0.0):
            yield

    @contextmanager
    def exported(self) -> Iterator[None]:
        """Within it, the model's parameters hold the current weights in the model's dtype; for saving.

        Weights that are stored elsewhere are copied to the CPU for this.
        """
        self.flush()
        elsewhere = [(p, p.data, storage) for p, storage in self.storages.items() if storage.state()]
        try:
            for parameter, _, storage in elsewhere:
                parameter.data = storage.exported().cpu()
            yield
        finally:
            for parameter, placeholder, _ in elsewhere:
                parameter.data = placeholder

    def release(self) -> None:
        """End training: all weights go back into the model's parameters, in the model's dtype."""
        self.weights.close()
        self._released = any(storage.state() for storage in self.storages.values())
        stuck = sum(storage.at_the_limit() for storage in self.storages.values())
        if stuck:
            logger.warning(
                "mezo: %d weights have grown to the end of their 16-bit grid and could grow no further; the storage "
                "'fp32' has no such limit",
                stuck,
            )
        for storage in self.storages.values():
            storage.release()
        if self.recorder is not None:
            self.recorder.clear()

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        """End the window of micro-batches: average, and apply the update unless a loss is not finite.

        Afterwards `last` says what was measured and whether it was applied; `bad_steps` counts the steps in a row
        that were not. RuntimeError without an `accumulate` since the last call; ValueError for a closure, or a learning
        rate or weight decay that is out of range by now: nothing has happened then.
        """
        if closure is not None:
            raise ValueError("MeZO takes no closure; give the loss to accumulate(step, loss)")
        for group in range(len(self.param_groups)):
            self._check_group(group)
        number, losses = self._closed()
        recorded = self._recorded(number)
        proposal = self.course.propose(number, losses)
        record = recorded or self._record(number, proposal)
        if self.journal is not None:
            if number != self._next:
                raise JournalError(f"step {number} cannot be applied to weights before step {self._next}")
            if recorded is None:
                self.journal.append(record)
            self._next += 1
        if record.applied:
            rates = [record.rates[rate] for rate in self._rate_numbers()]
            update = update_of(proposal.moves, rates, self._decays)
            self.weights.update([update])
            self.course.take(proposal)
            self._latest = (update, *self._latest)[: self.course.undone]
        self.bad_steps = 0 if record.applied else self.bad_steps + 1
        if recorded is None:
            self._check_ranks(number)
        self.last = StepResult(number, proposal.losses, proposal.terms, record.applied)

    def _check_ranks(self, step: int) -> None:
        """Now and then, `RanksDifferError` where ranks have different weights."""
        every = self.config.check_ranks_steps
        if every and step % every == 0 and self.ranks.count > 1 and not self.weights.sharded:  # these are there once
            self.flush()  # ranks whose batches differ may have brought up different layers
            stored = dict(zip(self.names, self.storages.values(), strict=True))
            check_same_weights(stored, step, step // every, self.ranks, self.device)

    def _closed(self) -> tuple[int, Sequence[float]]:
        """Number and losses of the step that ends."""
        step, estimator = self._window.step, self.course.estimator
        recorded = None if step is None else self._recorded(step)
        if recorded is not None:  # known to all ranks, of which some may have had no example
            return self._window.drop(), recorded.losses
        if estimator.per_example:
            return self._window.close_apart(self.config.num_directions, self.ranks, self.device)
        if step is None or estimator.adaptive:  # these are known to all ranks already
            return self._window.close(self.course.num_losses, Ranks(), self.device)
        return self._window.close(len(self.course.points(step)), self.ranks, self.device)

    def journal_header(self, model: str, fingerprint: str, stored: dict[str, list[str]] | None = None) -> Header:
        """The header of this run's journal.

        Args:
            model: where the base model came from.
            fingerprint: of the trained parameters as they are in it, see `fingerprint.py`.
            stored: names in the model's files of parameters that have others there.
        """
        numbers = {parameter: number for number, parameter in enumerate(self.storages)}
        groups = tuple(
            Group(tuple(sorted(numbers[p] for p in group["params"])), float(group["weight_decay"]), rate)
            for group, rate in zip(self._used_groups, self._rate_numbers(), strict=True)
        )
        return Header(
            model=model,
            fingerprint=fingerprint,
            names=self.names,
            dtypes=tuple(dtype_name(p.dtype) for p in self.storages),
            shapes=tuple(tuple(p.shape) for p in self.storages),
            names_hash=self.names_hash,
            sizes=self.sizes,
            groups=groups,
            stored=stored or {},
            **{name: getattr(self.config, name) for name in SETTINGS},
        )

    def catch_up(self, first: int, last: int) -> None:
        """Apply steps first ... last - 1 of the journal to weights that are those before step `first`."""
        if self.journal is None:
            raise RuntimeError("there is no journal to catch up with")
        self._next = last
        header, records = self.journal.header, self.journal.records[:last]
        self.course = Course(header)
        for _ in updates_of(header, records[:first], self.course):
            pass  # these are in the weights
        apply_records(header, records[first:], self.weights, self.course)
        if self.course.undone:
            self._latest = tuple(updates_of(header, records, Course(header)))[: -self.course.undone - 1 : -1]
        self.bad_steps = next((k for k, record in enumerate(reversed(records)) if record.applied), len(records))

    def _recorded(self, step: int) -> Record | None:
        """The journal's record of a step, if it has one."""
        records = [] if self.journal is None else self.journal.records
        return records[step] if step < len(records) else None

    def _record(self, number: int, proposal: Proposal) -> Record:
        """A step that was just measured."""
        groups, numbers = self._used_groups, self._rate_numbers()
        rates = tuple(float(groups[numbers.index(k)]["lr"]) for k in range(1 + max(numbers)))
        for group, rate in zip(groups, numbers, strict=True):
            if float(group["lr"]) != rates[rate]:
                raise JournalError(
                    f"at step {number} groups with equal rates at the start have {rates[rate]} and {group['lr']}: "
                    "where a schedule treats groups differently, let their rates differ from the start"
                )
        update = update_of(proposal.moves, [rates[k] for k in numbers], self._decays)
        return Record(number, can_be_applied(proposal, update), proposal.losses, rates)

    @property
    def _used_groups(self) -> list[dict[str, Any]]:
        """The groups that have parameters."""
        return [group for group in self.param_groups if group["params"]]

    @property
    def _decays(self) -> list[float]:
        """Weight decay of each used group."""
        return [float(group["weight_decay"]) for group in self._used_groups]

    def _rate_numbers(self) -> list[int]:
        """For each used group, the number of its learning rate among the distinct ones at the start."""
        initial = [float(group.get("initial_lr", group["lr"])) for group in self._used_groups]
        distinct = list(dict.fromkeys(initial))
        return [distinct.index(rate) for rate in initial]


def _check_trainable(parameters: list[nn.Parameter]) -> None:
    if not parameters:
        raise ValueError("every parameter group is empty; there is nothing to train")
    for parameter in parameters:
        if not parameter.requires_grad:
            raise ValueError(
                f"a parameter of shape {tuple(parameter.shape)} is in a group but frozen (requires_grad is False); "
                "leave it out of the groups or set requires_grad"
            )
