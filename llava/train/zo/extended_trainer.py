"""`MeZOTrainer` with what this tree's models and runs have beyond those of LLaVA-NeXT.

Batches that are laid out on the host, features that are kept, objectives of whole answers, weights in shards or on the
host, another number of processes, a validation curve and a report.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from llava.mezo import MeZO
from llava.mezo.algorithms.course import Course
from llava.mezo.answer_tree import AnswerTree
from llava.mezo.errors import InputError
from llava.mezo.journal.records import applied_steps
from llava.mezo.kernels.choice import kernel_for
from llava.mezo.offloading.optimizer import OffloadedMeZO
from llava.mezo.progress import rms_report, size_of
from llava.mezo.sharding.optimizer import ShardedMeZO
from llava.train.zo.device_settings import DeviceSettings, refuse_placement
from llava.train.zo.laid_out_forwards import LaidOutForwards, Objective
from llava.train.zo.offloading import OffloadedRun, to_host
from llava.train.zo.settings import CLASSIFICATION
from llava.train.zo.sharded_run import ShardedRun
from llava.train.zo.shared_batches import SharedBatches
from llava.train.zo.step_inputs import KnownFeatures
from llava.train.zo.trainer import MeZOTrainer


class ExtendedMeZOTrainer(SharedBatches, OffloadedRun, ShardedRun, MeZOTrainer):
    """The trainer of `--trainer_mode zo`."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        refuse_placement(self.args)
        self.known_features: KnownFeatures | None = None
        """Features of images that were encoded before, for models that lay batches out."""
        self.objective: Objective | None = None
        """Takes the place of the loss, where `--zo_objective` is of generated answers."""
        self.answers: AnswerTree | None = None
        """Those that `--zo_objective classification` is among."""

    def train(self, *args: Any, **kwargs: Any) -> Any:
        """As the base class.

        Raises:
            InputError: also an objective of generated answers without a function for it, or of answers without them.
        """
        if self.zo.objective == CLASSIFICATION:
            if self.answers is None:
                raise InputError(f"--zo_objective {CLASSIFICATION}: set the trainer's `answers` to an AnswerTree")
        elif self.zo.objective not in ("loss", "accuracy") and self.objective is None:
            raise InputError(f"--zo_objective {self.zo.objective}: set the trainer's `objective` to a function")
        return super().train(*args, **kwargs)

    def make_mezo(self, groups: list[dict[str, Any]], sizes: Sequence[float] | None) -> MeZO:
        given = groups, self.model, self.zo.config
        if self.shares_weights:
            return ShardedMeZO(*given, sizes=sizes)
        if self._offloads_of(self.model):
            to_host(self.model)
            return OffloadedMeZO(*given, sizes=sizes, device=self.args.device)
        return super().make_mezo(groups, sizes)

    def make_forwards(self, network: nn.Module) -> LaidOutForwards:
        return LaidOutForwards(
            *self.of_forwards(network),
            place=DeviceSettings.of(self.args),
            objective=self.objective,
            known=self.known_features,
            answers=self.answers,
        )

    def validation_loss(self, batch: dict[str, Any]) -> torch.Tensor:
        """Mean cross entropy of what the collator gave, by the same forward as in a step."""
        forwards: Any = self._forwards_of(self.model_wrapped)
        loss: torch.Tensor = forwards.loss(batch)
        return loss

    def step_loss(self, batch: dict[str, Any]) -> torch.Tensor:
        """The same of the objective, which for `classification` is among the answers alone."""
        forwards: Any = self._forwards_of(self.model_wrapped)
        loss: torch.Tensor = forwards.step_loss(batch)
        return loss

    def _go_back(self) -> str:
        if self.validation is not None:
            self.validation.curve.forget_after(self.watch.lowest())
        return super()._go_back()

    def _forget_after(self, step: int, output: Path) -> None:
        super()._forget_after(step, output)
        if self.validation is not None:
            self.validation.curve.save(output)

    def report(self) -> dict[str, Any]:
        """What report.json says of the engine: its flags, and which kernel ran."""
        config = self.zo.config
        kernel = kernel_for(config.kernel, self.mezo.device.type, self.mezo.weights.noise)
        report: dict[str, Any] = {"zo_kernel": kernel.name, "zo_eps": config.eps, "zo_seed": config.seed}
        report["zo_weight_storage"] = config.storage
        forwards: Any = None if self._forwards is None else self._forwards[1]
        report["zo_offload"] = "cpu" if self._offloads else "none"
        if self.known_features is not None and forwards is not None and forwards.inputs is not None:
            report["feature_cache"] = {"hits": forwards.inputs.hits, "misses": forwards.inputs.misses}
        report["projected_gradients"] = rms_report(self._sizes())
        if self.zo.probe_steps:
            records, windows = self.args.train_batch_size, self.probing.probes.report(config.eps)
            report["probes"] = {"every": self.zo.probe_steps, "records_of_a_batch": records, "windows": windows}
        if self.gone_back:
            report["halvings"] = [{"after_step": kept.steps, "back_to_step": kept.back_to} for kept in self.gone_back]
        return report | self.mezo.weights.report()

    def _sizes(self) -> list[tuple[int, float]]:
        """Steps, and sizes of their projected gradients: all of them from a journal, else those that were logged."""
        if self.mezo.journal is None:
            logged = [entry for entry in self.state.log_history if "projected_grad" in entry]
            return [(int(entry["step"]), entry["projected_grad"]) for entry in logged]
        steps = applied_steps(self.mezo.journal.records, Course(self.mezo.journal.header))
        return [(record.step + 1, size_of(proposal.terms)) for record, proposal in steps if proposal.terms]
