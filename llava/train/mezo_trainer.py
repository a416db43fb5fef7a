"""MeZOTrainer: zeroth-order training inside the HF Trainer's own loop.

Three methods of the Trainer are touched: `create_optimizer` gives a `llava.mezo.MeZO`, `training_step`
runs the forwards of a micro-batch and hands their losses to it, `log` shows what a zeroth-order step has
in place of a gradient norm. The loop, the scheduler, saving and resuming stay transformers' own.

Runs with transformers 4.40 (where `training_step` has no third argument) to 5.x.
"""

from __future__ import annotations

import contextlib
import functools
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn
from torch.utils.data import DataLoader, RandomSampler, Sampler
from transformers import TrainerCallback

from llava.errors import InputError
from llava.mezo import MeZO, no_decay_names, reuse_outputs
from llava.mezo.head import cross_entropy, token_errors
from llava.mezo.journal_format import JournalError
from llava.mezo.kernels.choice import kernel_for
from llava.train.epoch_sampler import EpochSampler
from llava.train.llava_trainer import LLaVATrainer
from llava.train.resume_points import SaveResumePoints, start_of
from llava.train.sparse_loss import laid_out_loss, plain_head, sparse_loss
from llava.train.step_batches import MicroBatches, StepSampler, Together, parts_of
from llava.train.step_inputs import KnownFeatures, StepInputs, frozen_image_modules, image_modules
from llava.train.unsaved import load_unsaved, save_unsaved
from llava.train.zo_arguments import mezo_config, planned_rows, refuse_impossible

if TYPE_CHECKING:
    from llava.train.zo_journal import RunJournal


class DivergedError(FloatingPointError):
    """The loss was not finite in `zo_max_bad_steps` steps in a row; the last good weights have been saved."""


class MeZOTrainer(LLaVATrainer):
    """LLaVATrainer that estimates gradients from forwards alone (MeZO, Malladi et al. 2023, Algorithm 1)."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        refuse_impossible(self.args)
        mezo_config(self.args)  # a value out of range shows now
        self.args.max_grad_norm = 0.0  # there are no gradients to clip
        self.add_callback(_StopWhenDiverged(self))
        self._log_time: float | None = None
        self._log_step = 0
        self.known_features: KnownFeatures | None = None
        """Features of images that were encoded before, for models that lay batches out."""
        self.objective: Callable[[nn.Module, dict[str, Any]], float] | None = None
        """Takes the place of the loss: of a model, and a batch, for which it runs the model many times."""
        self._measure = token_errors if getattr(self.args, "zo_objective", "loss") == "accuracy" else cross_entropy
        self._step_inputs: StepInputs | None = None
        self._network: tuple[nn.Module, nn.Module] | None = None
        self._plan_batches()
        self.run_journal: RunJournal | None = None
        if getattr(self.args, "zo_journal", False):
            from llava.train.zo_journal import RunJournal

            self.run_journal = RunJournal(self)
            self.add_callback(SaveResumePoints(self.run_journal))

    def create_accelerator_and_postprocess(self) -> None:
        """As the base class, but models are not wrapped in DistributedDataParallel.

        Ranks share losses, not gradients, and its buffers for these would take as much memory as the trained weights.
        """
        super().create_accelerator_and_postprocess()
        self.accelerator.prepare_model = functools.partial(self.accelerator.prepare_model, evaluation_mode=True)
        self.accelerator.device_placement = False  # layouts are made of batches as the data loader gives them

    def _plan_batches(self) -> None:
        """Steps of unequal size, or in parts, if the flags ask for them."""
        config, size = mezo_config(self.args), self.args.train_batch_size
        self._rows_of_steps = planned_rows(self.args, config.anchor_steps)
        if config.estimator == "per_example":
            self.data_collator = MicroBatches(self.data_collator, 1)
        elif self._rows_of_steps is not None:
            self.data_collator = MicroBatches(self.data_collator, size)

    def get_train_dataloader(self) -> DataLoader[Any]:
        """As the base class, or with as many records a step as are planned."""
        if self._rows_of_steps is None:
            return super().get_train_dataloader()
        dataset, size = self.train_dataset, self._train_batch_size
        self.train_dataset, self._train_batch_size = Together(dataset), 1
        try:
            return super().get_train_dataloader()
        finally:
            self.train_dataset, self._train_batch_size = dataset, size

    def _get_train_sampler(self, *given: Any) -> Sampler[int] | None:
        """As the base class, in an order that does not depend on what was drawn before: a resumed run has it again."""
        rows, sampler = self._rows_of_steps, super()._get_train_sampler(*given)
        seedable = isinstance(sampler, RandomSampler) and getattr(self.accelerator, "use_seedable_sampler", False)
        if sampler is None or (seedable and rows is None):
            return sampler
        if not isinstance(sampler, EpochSampler):
            sampler = EpochSampler(sampler, self.args.seed if self.args.data_seed is None else self.args.data_seed)
        return sampler if rows is None else StepSampler(sampler, rows, self.args.world_size)

    def create_optimizer(self, model: nn.Module | None = None) -> torch.optim.Optimizer:
        """A `MeZO` over the groups of the base trainer: same learning rates, no decay on norms and biases."""
        if self.optimizer is None:
            groups = super().create_optimizer().param_groups
            names = {id(parameter): name for name, parameter in self.model.named_parameters()}
            exempt = no_decay_names(self.model)
            self.optimizer = None  # the base class's must not be taken for MeZO if the next line fails
            sizes = None if self.run_journal is None else self.run_journal.sizes
            self.optimizer = MeZO(_split_decay(groups, names, exempt), self.model, mezo_config(self.args), sizes=sizes)
            if self.run_journal is not None and self.run_journal.prepared:  # else nobody trains yet
                self.optimizer.journal = self.run_journal.open()
        return self.optimizer

    def training_step(self, model: nn.Module, inputs: dict[str, Any], num_items_in_batch: Any = None) -> torch.Tensor:
        """The forwards of one micro-batch; `MeZO.step`, called by the loop, does the rest.

        Returns:
            The mean loss of these forwards over the number of micro-batches in a step, as the loop expects.
        """
        if self._log_time is None:
            self._log_time, self._log_step = time.perf_counter(), self.state.global_step
        network, parts = self._unwrapped(model), parts_of(inputs)
        losses = [rows * self._accumulate(network, part, rows) for part, rows in parts]
        loss = sum(losses) / sum(rows for _, rows in parts)
        window = getattr(self, "current_gradient_accumulation_steps", self.args.gradient_accumulation_steps)
        return torch.tensor(loss / window, device=self.args.device)

    def _accumulate(self, network: nn.Module, inputs: dict[str, Any], rows: int) -> float:
        """The forwards of one micro-batch; their mean loss."""
        step, objective = self.state.global_step, self.objective
        if objective is not None:
            return self.mezo.accumulate(step, lambda: objective(network, inputs), weight=rows, keep=True)
        tensors = self._laid_out(network, inputs)
        if tensors is not None:
            return self.mezo.accumulate(step, self._laid_out_loss, tensors, weight=rows)
        inputs = with_pixels_as_weights(network, self._prepare_inputs(inputs))
        with reuse_outputs(frozen_image_modules(network)):
            return self.mezo.accumulate(step, lambda: self.step_loss(network, inputs), weight=rows)

    def _unwrapped(self, model: nn.Module) -> nn.Module:
        """The model without accelerate's wrapper, which would run the forward under autocast; looked for once."""
        if self._network is None or self._network[0] is not model:
            self._network = model, self.accelerator.unwrap_model(model, keep_fp32_wrapper=False)
        return self._network[1]

    def _get_grad_norm(self, *given: Any, **options: Any) -> None:
        """None: there are no gradients to look for."""

    def floating_point_ops(self, inputs: dict[str, Any]) -> int:
        """As the base class, of forwards alone: 2 operations a token and parameter."""
        tokens = sum(part["input_ids"].numel() for part, _ in parts_of(inputs) if "input_ids" in part)
        return 2 * self.mezo.course.num_losses * tokens * self._num_parameters

    @functools.cached_property
    def _num_parameters(self) -> int:
        return self.model.num_parameters(exclude_embeddings=True) if hasattr(self.model, "num_parameters") else 0

    def _laid_out(self, network: nn.Module, inputs: dict[str, Any]) -> dict[str, torch.Tensor] | None:
        """The batch as tensors alone, if the model lays batches out and its loss is the plain one."""
        base: Any = network.get_base_model() if hasattr(network, "get_base_model") else network
        if not hasattr(base, "geometry") or plain_head(base) is None or inputs.get("labels") is None:
            return None
        if self._step_inputs is None or self._step_inputs.model is not base:
            self._step_inputs = StepInputs(base, self.mezo, self.args.zo_length_bucket, self.known_features)
            self._laid_out_loss = functools.partial(laid_out_loss, base, measure=self._measure)
        return self._step_inputs(inputs)

    def step_loss(self, network: nn.Module, inputs: dict[str, Any]) -> torch.Tensor:
        """The loss of one forward; without logits where the model is a language model that allows it."""
        loss = sparse_loss(network, inputs, self._measure)
        if loss is not None:
            return loss
        if self._measure is token_errors:
            raise InputError(f"--zo_objective accuracy: {type(network).__name__} has no plain output head to ask")
        return self.compute_loss(network, dict(inputs))

    def log(self, logs: dict[str, float], *rest: Any) -> None:
        """Adds the last step's projected gradient and losses, and the seconds a step took since the last log.

        With a journal, the loss is the mean of the steps' since the last log, also where that was before a stop.
        """
        result = self.mezo.last if "loss" in logs else None
        if result is not None:
            logs.pop("grad_norm", None)
            logs["projected_grad"] = result.terms[-1].projected_grad
            if self.mezo.config.estimator == "spsa":
                logs["loss_plus"], logs["loss_minus"] = result.losses[-2:]
            if self.mezo.journal is not None:
                since = max((entry["step"] for entry in self.state.log_history if "loss" in entry), default=0)
                records = self.mezo.journal.records[since : self.state.global_step]
                logs["loss"] = sum(record.loss for record in records) / len(records)
            now, steps = time.perf_counter(), self.state.global_step - self._log_step
            if self._log_time is not None and steps > 0:
                logs["step_time"] = round((now - self._log_time) / steps, 6)
            self._log_time, self._log_step = now, self.state.global_step
        super().log(logs, *rest)

    def evaluation_loop(self, *args: Any, **kwargs: Any) -> Any:
        """As the base class, with the weights as they are now, wherever they are stored."""
        with contextlib.nullcontext() if self.optimizer is None else self.mezo.current_weights():
            return super().evaluation_loop(*args, **kwargs)

    def _save(self, output_dir: str | None = None, *args: Any, **kwargs: Any) -> None:
        with contextlib.nullcontext() if self.optimizer is None else self.mezo.exported():
            super()._save(output_dir, *args, **kwargs)
            if self.args.should_save:
                save_unsaved(self.model, Path(output_dir or self.args.output_dir))

    def _save_checkpoint(self, *args: Any, **kwargs: Any) -> None:
        if self.mezo.journal is not None:
            self.mezo.journal.sync()  # no checkpoint is ahead of the records, even after a power cut
        super()._save_checkpoint(*args, **kwargs)

    def _load_best_model(self) -> None:
        self.mezo.release()
        super()._load_best_model()

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        journal, path = self.run_journal, Path(resume_from_checkpoint)
        full = path if journal is None else journal.full_checkpoint(path)
        if full is not None:
            super()._load_from_checkpoint(str(full), model)
            load_unsaved(self.model, full)

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        if checkpoint is None or self.run_journal is None:
            super()._load_optimizer_and_scheduler(checkpoint)
            return
        full = self.run_journal.full_checkpoint(Path(checkpoint))
        if full is not None:  # weights as exactly as they were stored
            super()._load_optimizer_and_scheduler(str(full))
        self.run_journal.load(Path(checkpoint), full)

    def _load_rng_state(self, checkpoint: str | None) -> None:
        if checkpoint is None or self.run_journal is None or not self.run_journal.load_random_states(Path(checkpoint)):
            super()._load_rng_state(checkpoint)

    def train(self, resume_from_checkpoint: Any = None, *args: Any, **kwargs: Any) -> Any:
        """As the base class; a run is also resumed from its journal's folder, or from a resume point in it.

        True is where an unfinished run in `output_dir` stopped; a new run starts if there is none.

        Afterwards the weights are in the model, however they were stored in training.

        Raises:
            DivergedError: it had to stop because the loss is not finite.
            InputError: the journal does not fit this run, is damaged, or cannot be written.
        """
        if getattr(self.args, "zo_objective", "loss") not in ("loss", "accuracy") and self.objective is None:
            raise InputError(f"--zo_objective {self.args.zo_objective}: set the trainer's `objective` to a function")
        try:
            if resume_from_checkpoint is True:
                start = start_of(Path(self.args.output_dir))
                resume_from_checkpoint = None if start is None else str(start)
            if self.run_journal is not None:
                resume_from_checkpoint = self.run_journal.prepare(resume_from_checkpoint)
                if not self.run_journal.prepared:
                    self.run_journal = None
            result = super().train(resume_from_checkpoint, *args, **kwargs)
        except JournalError as error:
            if self.run_journal is None:
                raise
            raise self.run_journal.wrong(error) from error
        finally:
            if self.optimizer is not None:
                self.mezo.release()
                if self.mezo.journal is not None:
                    self.mezo.journal.close()
            if self.run_journal is not None and self.run_journal.lock is not None:
                self.run_journal.lock.release()
        if self.run_journal is not None and self.args.load_best_model_at_end and self.args.save_strategy == "no":
            self.run_journal.load_best()
        if self.diverged:
            raise DivergedError(
                f"the loss was not finite in the last {self.mezo.bad_steps} steps (--zo_max_bad_steps "
                f"{self.args.zo_max_bad_steps}); none of them was applied and the last good weights are in "
                f"{self.args.output_dir}/checkpoint-{self.state.global_step}. "
                "Lower --learning_rate or --zo_eps, or look at the data."
            )
        return result

    def report(self) -> dict[str, Any]:
        """What report.json says of the engine: its flags, and which kernel ran."""
        names = ("zo_eps", "zo_seed", "zo_weight_storage")
        kernel = kernel_for(self.args.zo_kernel, self.mezo.device.type, self.mezo.weights.noise)
        report = {"zo_kernel": kernel.name, **{name: getattr(self.args, name) for name in names}}
        if self.known_features is not None and self._step_inputs is not None:
            report["feature_cache"] = {"hits": self._step_inputs.hits, "misses": self._step_inputs.misses}
        return report

    @property
    def mezo(self) -> MeZO:
        """The optimizer without accelerate's wrapper."""
        return getattr(self.optimizer, "optimizer", self.optimizer)

    @property
    def diverged(self) -> bool:
        """Whether the last `zo_max_bad_steps` losses were not finite."""
        return self.mezo.bad_steps >= self.args.zo_max_bad_steps


class _StopWhenDiverged(TrainerCallback):
    """Saves and stops after too many steps that could not be applied."""

    def __init__(self, trainer: MeZOTrainer) -> None:
        self.trainer = trainer

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if self.trainer.diverged:
            control.should_save = True
            control.should_training_stop = True


def with_pixels_as_weights(network: nn.Module, inputs: dict[str, Any]) -> dict[str, Any]:
    """The inputs with pixels in the dtype of the modules that read them, which outside autocast may take no other."""
    weights = [p for module in image_modules(network) for p in module.parameters() if p.is_floating_point()]
    images = inputs.get("images")
    if images is None or not weights:
        return inputs
    dtype = weights[-1].dtype
    return {**inputs, "images": images.to(dtype) if isinstance(images, torch.Tensor) else [i.to(dtype) for i in images]}


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
