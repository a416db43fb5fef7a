"""MeZOTrainer: zeroth-order training inside the HF Trainer's own loop.

Three methods of the Trainer are MeZO: `create_optimizer` gives a `llava.mezo.MeZO`, `training_step` runs the forwards
of a micro-batch and hands their losses to it, `log` shows what a zeroth-order step has in place of a gradient norm.
Around them stand, each in a file of its own, what a run with a journal saves and resumes from (`JournaledRun`), when it
goes back (`HalvedRun`), which records a step has (`PlannedBatches`), and what needs no gradients (`WithoutGradients`).
The loop, the scheduler and checkpoints stay transformers' own.

Runs with transformers 4.40 (where `training_step` has no third argument) to 5.x.
"""

from __future__ import annotations

import functools
import logging
import time
from collections.abc import Sequence
from typing import Any

import torch
from torch import nn
from transformers import TrainerCallback
from transformers.training_args import OptimizerNames

from llava.mezo import MeZO, no_decay_names
from llava.train.llava_trainer import LLaVATrainer
from llava.train.zo.forwards import Forwards
from llava.train.zo.halved_run import HalvedRun
from llava.train.zo.journaled_run import SaveResumePoints
from llava.train.zo.planned_batches import PlannedBatches
from llava.train.zo.probing import ProbeNowAndThen
from llava.train.zo.settings import Settings, in_flags, refuse_impossible
from llava.train.zo.step_batches import parts_of
from llava.train.zo.watch import WatchDivergence
from llava.train.zo.without_gradients import WithoutGradients

logger = logging.getLogger(__name__)


class DivergedError(FloatingPointError):
    """The run stopped because its loss was not finite, or its projected gradients rose; the weights have been saved."""


class MeZOTrainer(HalvedRun, PlannedBatches, WithoutGradients, LLaVATrainer):
    """LLaVATrainer that estimates gradients from forwards alone (MeZO, Malladi et al. 2023, Algorithm 1)."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        refuse_impossible(self.args)
        self.zo = Settings.of(self.args)
        self.args.max_grad_norm = 0.0  # there are no gradients to clip
        self.args.optim = OptimizerNames.ADAMW_TORCH  # of what the base class makes only the groups are taken
        self.plan_batches(self.zo)
        self.add_callback(_StopWhenDiverged(self))
        self.watch = WatchDivergence(self)
        if self.zo.on_divergence != "off":
            self.add_callback(self.watch)
        self.add_callback(SaveResumePoints(self))
        self.probing = ProbeNowAndThen(self)
        if self.zo.probe_steps:
            self.add_callback(self.probing)
        self._forwards: tuple[nn.Module, Forwards] | None = None
        self._log_time: float | None = None
        self._log_step = 0

    def create_optimizer(self, model: nn.Module | None = None) -> torch.optim.Optimizer:
        """A `MeZO` over the groups of the base trainer: same learning rates, no decay on norms and biases."""
        if self.optimizer is None:
            groups = super().create_optimizer().param_groups
            names = {id(parameter): name for name, parameter in self.model.named_parameters()}
            exempt = no_decay_names(self.model)
            self.optimizer = None  # the base class's must not be taken for MeZO if the next line fails
            start = self.starting_point
            sizes = None if start is None else start.sizes
            with in_flags():
                self.optimizer = self.make_mezo(_split_decay(groups, names, exempt), sizes)
            self.optimizer.journal = self.open_journal()
        return self.optimizer

    def make_mezo(self, groups: list[dict[str, Any]], sizes: Sequence[float] | None) -> MeZO:
        """The optimizer of these groups; `sizes` as it takes them."""
        return MeZO(groups, self.model, self.zo.config, sizes=sizes)

    def training_step(self, model: nn.Module, inputs: dict[str, Any], num_items_in_batch: Any = None) -> torch.Tensor:
        """The forwards of one micro-batch; `MeZO.step`, called by the loop, does the rest.

        Returns:
            The mean loss of these forwards over the number of micro-batches in a step, as the loop expects.
        """
        replayed = self.mezo.journal is not None and self.state.global_step < len(self.mezo.journal.records)
        if replayed:
            self._log_time = None
        elif self._log_time is None:
            self._log_time, self._log_step = time.perf_counter(), self.state.global_step
        forwards, parts = self._forwards_of(model), parts_of(inputs)
        losses = [rows * forwards.accumulate(self.state.global_step, part, rows) for part, rows in parts]
        loss = sum(losses) / (sum(rows for _, rows in parts) or 1)  # a rank may have what does not count
        window = getattr(self, "current_gradient_accumulation_steps", self.args.gradient_accumulation_steps)
        return torch.tensor(loss / window, device=self.args.device)

    def log(self, logs: dict[str, float], *rest: Any) -> None:
        """Adds the last step's projected gradient and losses, and the seconds a step took since the last log.

        With a journal, the loss is the mean of the steps' since the last log, also where that was before a stop.
        """
        result = self.mezo.last if "loss" in logs else None
        if result is not None:
            logs.pop("grad_norm", None)
            logs["projected_grad"] = self.mezo.course.estimator.shown(result.losses, result.terms)
            if self.zo.config.estimator == "spsa":
                logs["loss_plus"], logs["loss_minus"] = result.losses[-2:]
            if self.mezo.journal is not None:
                since = int(max((entry["step"] for entry in self.state.log_history if "loss" in entry), default=0))
                records = self.mezo.journal.records[since : self.state.global_step]
                logs["loss"] = sum(record.loss for record in records) / len(records)
                if "learning_rate" in logs:
                    logs["learning_rate"] = records[-1].rates[0]  # a run may go on with another schedule
                if self.zo.config.estimator == "spsa" and all(len(set(record.losses)) == 1 for record in records):
                    logger.warning(
                        "steps %d to %d: the losses are equal on both sides, so nothing is learnt; does anything that "
                        "is trained take part in the forward? If so, raise --zo_eps",
                        records[0].step + 1,
                        records[-1].step + 1,
                    )
            now, steps = time.perf_counter(), self.state.global_step - self._log_step
            if self._log_time is not None and steps > 0:
                logs["step_time"] = round((now - self._log_time) / steps, 6)
            if self._log_time is not None:
                self._log_time, self._log_step = now, self.state.global_step
        super().log(logs, *rest)

    def evaluate(self, *args: Any, **kwargs: Any) -> dict[str, float]:
        """As the base class; what it takes is no part of a step's time."""
        begin = time.perf_counter()
        metrics: dict[str, float] = super().evaluate(*args, **kwargs)
        if self._log_time is not None:
            self._log_time += time.perf_counter() - begin
        return metrics

    def train(self, *args: Any, **kwargs: Any) -> Any:
        """As `HalvedRun.train`.

        Raises:
            DivergedError: it had to stop because the loss is not finite, or as `--zo_on_divergence` says.
        """
        result = super().train(*args, **kwargs)
        if self.diverged:
            raise DivergedError(
                f"{self.why_diverged}; none of them was applied and the last good weights are in "
                f"{self.args.output_dir}/checkpoint-{self.state.global_step}. "
                "Lower --learning_rate or --zo_eps, or look at the data."
            )
        if self.watch.why is not None and self.zo.on_divergence != "warn":
            raise DivergedError(f"{self.watch.why}. {self.watch.way_out()}")
        return result

    def _forwards_of(self, model: nn.Module) -> Forwards:
        """Made once for a model as the loop has it, and its optimizer."""
        if self._forwards is None or self._forwards[0] is not model or self._forwards[1].mezo is not self.mezo:
            network = self.accelerator.unwrap_model(model, keep_fp32_wrapper=False)  # whose forward is no autocast
            self._forwards = model, self.make_forwards(network)
        return self._forwards[1]

    def make_forwards(self, network: nn.Module) -> Forwards:
        """For the optimizer and the model without a wrapper."""
        return Forwards(*self.of_forwards(network))

    def of_forwards(self, network: nn.Module) -> tuple[Any, ...]:
        """What all `Forwards` take, in their order."""
        return self.mezo, network, self.zo, self._prepare_inputs, self.compute_loss

    def floating_point_ops(self, inputs: dict[str, Any]) -> int:
        """As the base class, of forwards alone: 2 operations a token and parameter."""
        tokens = sum(part["input_ids"].numel() for part, _ in parts_of(inputs) if "input_ids" in part)
        return 2 * self.mezo.course.num_losses * tokens * self._num_parameters // self.mezo.ranks.point_ways

    @functools.cached_property
    def _num_parameters(self) -> int:
        return self.model.num_parameters(exclude_embeddings=True) if hasattr(self.model, "num_parameters") else 0

    @property
    def why_diverged(self) -> str | None:
        """As the base class, or because losses are not finite."""
        if not self.diverged:
            return super().why_diverged
        return (
            f"the loss was not finite in the last {self.mezo.bad_steps} steps (--zo_max_bad_steps "
            f"{self.zo.config.max_bad_steps})"
        )

    @property
    def diverged(self) -> bool:
        """Whether the last `zo_max_bad_steps` losses were not finite."""
        return self.mezo.bad_steps >= self.zo.config.max_bad_steps


class _StopWhenDiverged(TrainerCallback):
    """Saves and stops after too many steps that could not be applied."""

    def __init__(self, trainer: MeZOTrainer) -> None:
        self.trainer = trainer

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if self.trainer.diverged:
            control.should_save = True
            control.should_training_stop = True


def _split_decay(groups: list[dict[str, Any]], names: dict[int, str], exempt: set[str]) -> list[dict[str, Any]]:
    """Each group with decay as two: what is decayed, and what is not."""
    split = []
    for group in groups:
        named = [(names[id(parameter)], parameter) for parameter in group["params"]]
        for decayed in (True, False):
            members = [(name, parameter) for name, parameter in named if (name not in exempt) == decayed]
            if members:
                split.append(
                    {
                        "params": [parameter for _, parameter in members],
                        "param_names": [name for name, _ in members],
                        "lr": group["lr"],
                        "weight_decay": group["weight_decay"] if decayed else 0.0,
                    }
                )
    return split
