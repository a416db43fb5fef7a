"""LLaVATrainer: the HF Trainer with LLaVA's samplers, parameter groups and checkpoints.

The training loop is transformers' own. Checkpoints hold what is needed to resume (projector-only and
LoRA runs included) and no pickle.
"""

from __future__ import annotations

import logging
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import transformers
from transformers import PreTrainedTokenizerBase
from transformers.trainer_utils import align_special_tokens

from llava.compatibility import names_of
from llava.errors import InputError
from llava.model.checkpoint_files import usable
from llava.model.llava_arch import LlavaMetaForCausalLM
from llava.runs import run_folder
from llava.train.order import order_of
from llava.train.parts import saving
from llava.train.parts.adapters import zero_3
from llava.train.parts.block_cycle import BlockCycle
from llava.train.parts.feature_cache import FeatureCache
from llava.train.parts.fused_optimizers import FUSED
from llava.train.parts.lean_adapters import lean
from llava.train.parts.low_rank import load_plain_state, plain_state
from llava.train.parts.master_weights import MasterWeights
from llava.train.parts.optimizers import fused_options, make_contiguous, with_masters
from llava.train.parts.param_groups import parameter_groups
from llava.train.parts.tunable import adapter_only
from llava.train.validated_run import ValidatedRun
from llava.train.workers import CollateOrRefuse, ItemsOrRefusals
from llava.train.zo import state
from llava.train.zo.epoch_sampler import EpochSampler
from llava.train.zo.resume_points import newest_checkpoint

if TYPE_CHECKING:
    from llava.train.flags.arguments import TrainingArguments

__getattr__ = names_of(__name__)

logger = logging.getLogger(__name__)


def should_only_save_mm_adapter(args: Any) -> bool:
    """Whether a run with these arguments trains, and saves, the projector alone."""
    return adapter_only(args)


class LLaVATrainer(ValidatedRun):
    """Trainer of a LLaVA model; `args` is `llava.train.flags.arguments.TrainingArguments`.

    `tokenizer`, transformers 4's name of `processing_class`, is taken too.
    """

    args: TrainingArguments
    model: Any
    train_dataset: Any
    data_collator: Any
    optimizer: Any
    lr_scheduler: Any

    _others: dict[str, torch.Tensor] | None = None
    """Weights beside the adapter that are to be saved, if they had to be put together."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        if "tokenizer" in kwargs:
            kwargs["processing_class"] = kwargs.pop("tokenizer")
        super().__init__(*args, **kwargs)
        if isinstance(self.processing_class, PreTrainedTokenizerBase):
            # now and not when it trains, so that a journal begins with the settings that are saved later
            align_special_tokens(self.model, self.processing_class)
        # The loss is a mean over each micro-batch, as LLaVA-NeXT has it, not over the accumulation window.
        self.model_accepts_loss_kwargs = False
        self.run_arguments: dict[str, Any] = run_folder.flat_arguments(self.args)
        """All flags of the run, written beside every saved model."""
        self.masters: MasterWeights | None = None
        """Of weights that are trained in 16 bits."""
        self.cycle: BlockCycle | None = None
        """Which block of layers is trained, with `--cycle_blocks`."""
        self.feature_cache: FeatureCache | None = None
        """Where features of frozen modules come from, if they are kept."""

    def create_accelerator_and_postprocess(self) -> None:
        if self.args.ddp_find_unused_parameters is None:
            # post_layernorm of a SigLIP tower counts as tuned with it, and nothing reads it
            self.args.ddp_find_unused_parameters = True
        super().create_accelerator_and_postprocess()
        if self.args.fp16 and self.accelerator.device.type == "cpu" and not self.is_deepspeed_enabled:
            # accelerate would train in float32 without a word
            self.accelerator.native_amp = True
            self.accelerator.scaler = torch.amp.GradScaler("cpu")
        optim: Any = self.args.optim  # an entry of transformers' enumeration by now
        if optim.value in FUSED:
            backward = self.accelerator.backward  # which gets a rate for the package's LOMO; groups have theirs
            self.accelerator.backward = lambda loss, learning_rate=None, **more: backward(loss, **more)

    def train(self, *args: Any, **kwargs: Any) -> Any:
        """As the base class."""
        result = super().train(*args, **kwargs)
        if self.cycle is not None:
            self.cycle.finish()
        return result

    def training_step(self, *args: Any, **kwargs: Any) -> torch.Tensor:
        """As the base class.

        Raises:
            FloatingPointError: the loss is not finite, on any rank: the weights are lost, and are not saved.
        """
        sees_to_memory = self.is_deepspeed_enabled or self.is_fsdp_enabled or self.args.torch_compile
        adapted = saving.is_peft(self.model) and not sees_to_memory
        with lean(self.model, self.accelerator.native_amp) if adapted else nullcontext():
            loss = super().training_step(*args, **kwargs)
        total = loss if self.args.world_size == 1 else self.accelerator.reduce(loss.detach().clone(), "sum")
        if not torch.isfinite(total):
            raise FloatingPointError(f"the loss of step {self.state.global_step + 1} is {float(loss)}{self.advice()}")
        return loss

    def compute_loss(self, model: Any, inputs: Any, return_outputs: bool = False, *rest: Any, **more: Any) -> Any:
        """As the base class; without logits that the loss does not need, the largest tensors of a forward."""
        network = self.accelerator.unwrap_model(model)
        whole = network.get_base_model() if saving.is_peft(network) else network
        if not return_outputs and isinstance(whole, LlavaMetaForCausalLM):
            inputs = {**inputs, "loss_alone": True}
        return super().compute_loss(model, inputs, return_outputs, *rest, **more)

    def advice(self) -> str:
        """What to do after a run has diverged."""
        kept = newest_checkpoint(Path(str(self.args.output_dir)))
        where = f"the last good weights are in {kept}" if kept else "no checkpoint was saved before"
        return f": the run has diverged; {where}. Lower --learning_rate, or look at the data."

    def report(self) -> dict[str, Any]:
        """What this kind of trainer adds to report.json."""
        cache, cycle = self.feature_cache, self.cycle
        found: dict[str, Any] = {}
        if cache is not None:
            found["feature_cache"] = {"hits": cache.hits, "misses": cache.misses}
        if cycle is not None:
            found |= {"trainable_parameters": cycle.trained, "not_in_a_block": sorted(cycle.left_out)}
        return found

    def get_train_dataloader(self) -> torch.utils.data.DataLoader[Any]:
        """As the base class; an `InputError` of a worker arrives as it is."""
        dataset, collate = self.train_dataset, self.data_collator
        if self.args.dataloader_num_workers == 0 or isinstance(dataset, torch.utils.data.IterableDataset):
            return super().get_train_dataloader()
        self.train_dataset, self.data_collator = ItemsOrRefusals(dataset), CollateOrRefuse(collate)
        try:
            return super().get_train_dataloader()
        finally:
            self.train_dataset, self.data_collator = dataset, collate

    def _get_train_sampler(self, train_dataset: Any = None) -> torch.utils.data.Sampler | None:
        dataset = self.train_dataset if train_dataset is None else train_dataset
        order = order_of(dataset, self.args, self.args.data_processes)
        if order is not None:
            seed = self.args.seed if self.args.data_seed is None else self.args.data_seed
            return EpochSampler(order, seed)
        return super()._get_train_sampler(train_dataset)

    @staticmethod
    def get_optimizer_cls_and_kwargs(args: Any, model: Any = None) -> tuple[Any, dict[str, Any]]:
        """As the base class, but for LOMO and AdaLomo, which are this tree's own, and AdamW's step, which is fused.

        The usual one makes temporaries as large as the weights of a group: 1.1 GB for word embeddings of 0.5b shape.
        With `--fp16` a step that is skipped has to be torch's scaler's, which leaves a fused one to its kernel.
        """
        if str(args.optim.value) in FUSED:
            return FUSED[args.optim.value], fused_options(args)
        kind, options = transformers.Trainer.get_optimizer_cls_and_kwargs(args, model)
        if kind is torch.optim.AdamW and not args.fp16:
            options["fused"] = True
        return kind, options

    def create_optimizer(self, model: Any = None) -> torch.optim.Optimizer:
        if self.optimizer is None:
            network = self.model if model is None else model
            try:
                kind, options = self.get_optimizer_cls_and_kwargs(self.args, network)
            except ValueError as error:  # the layers that are named are not there
                where = f"--optim_target_modules {self.args.optim_target_modules}"
                raise InputError(f"--optim {self.args.to_dict()['optim']} with {where}: {error}") from error
            if self.args.trainer_mode == "regular":
                make_contiguous(network)
            groups = parameter_groups(network, self.args)
            if self.args.cycle_blocks:
                how = self.args.cycle_blocks, self.args.seed
                self.cycle = BlockCycle(network, groups, lambda groups: kind(groups, **options), *how)
                self.masters, self.optimizer = None, self.cycle.optimizer
            else:
                self.optimizer, self.masters = with_masters(network, kind, options, groups, self._wants_masters())
        return self.optimizer

    def _wants_masters(self) -> bool:
        """Not in zo mode, and not where the engine keeps masters of its own."""
        return self.args.trainer_mode == "regular" and not (self.is_deepspeed_enabled or self.is_fsdp_enabled)

    def _save(self, output_dir: str | None = None, state_dict: dict[str, torch.Tensor] | None = None) -> None:
        folder = Path(output_dir if output_dir is not None else str(self.args.output_dir))
        if not self.args.should_save:
            return
        folder.mkdir(parents=True, exist_ok=True)
        with saving.for_use(self.model, folder):
            if saving.is_peft(self.model):
                saving.save_lora(self.model, folder, state_dict, self._others)
            elif self.args.zo_quantized_scales:
                saving.save_scales(self.model, folder)
            elif adapter_only(self.args):
                saving.save_adapter(self.model, folder, state_dict)
            else:
                saving.save_full(self.model, folder, state_dict)
        if self.processing_class is not None:
            self.processing_class.save_pretrained(folder)
        run_folder.save_arguments(self.run_arguments, folder)

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        """As the base class. InputError: it wrote no model that could be used."""
        if zero_3(self.args) and saving.is_peft(self.model):
            self._others = saving.non_lora_tensors(self.model)  # all ranks are here, in `_save` one is
        super().save_model(output_dir, _internal_call)
        if self.args.should_save and not self.is_fsdp_enabled:
            saving.check_saved(self.model, Path(output_dir or str(self.args.output_dir)))

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        """As the base class. InputError: the checkpoint is damaged, or of another model."""
        network = self.model if model is None else model
        folder = Path(resume_from_checkpoint)
        left_out = None if self.is_fsdp_enabled else saving.lacking(network, folder)
        if left_out is not None:
            raise InputError(
                f"{folder}: lacks {left_out} as this run trains it, so it is of a run with other flags, or damaged: "
                "give the flags of then, or another --output_dir"
            )
        for name in (saving.PROJECTOR_FILE, saving.SCALES_FILE):
            if (folder / name).exists():
                saving.load_tensors(network, folder / name)
                return
        with usable(f"{folder}: its weights"):
            super()._load_from_checkpoint(resume_from_checkpoint, model)
        if (folder / saving.NON_LORA_FILE).exists():
            saving.load_tensors(network, folder / saving.NON_LORA_FILE)

    def _save_optimizer_and_scheduler(self, output_dir: str) -> None:
        if self.is_deepspeed_enabled or self.is_fsdp_enabled:
            super()._save_optimizer_and_scheduler(output_dir)  # their own sharded formats
        elif self.args.should_save:
            state.save_state(plain_state(self.optimizer.state_dict()), Path(output_dir), "optimizer")
            state.save_state(self.lr_scheduler.state_dict(), Path(output_dir), "scheduler")
            if self.cycle is not None:
                state.save_state(self.cycle.state_dict(), Path(output_dir), "cycle")
            masters = self.masters if self.cycle is None else self.cycle.masters
            if masters:
                state.save_state(masters.state_dict(), Path(output_dir), "masters")

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        if checkpoint is None or self.is_deepspeed_enabled or self.is_fsdp_enabled:
            super()._load_optimizer_and_scheduler(checkpoint)
            return
        optimizer, scheduler = (state.load_state(Path(checkpoint), stem) for stem in ("optimizer", "scheduler"))
        if optimizer is None or scheduler is None:
            raise InputError(
                f"{checkpoint} has no {'optimizer' if optimizer is None else 'scheduler'}.json, as after "
                "--save_only_model: a run cannot go on from it; start a new one from the model (--model_name_or_path)"
            )
        if self.cycle is not None:
            cycle = state.load_state(Path(checkpoint), "cycle")
            if cycle is None:
                raise InputError(f"{checkpoint} has no cycle.json, so it is of a run without --cycle_blocks")
            self.cycle.load_state_dict(cycle)
        loading = usable(f"{checkpoint}: the state of its optimizer, with these flags,")
        with loading, state.settings_of_flags(self.optimizer, self.lr_scheduler):
            load_plain_state(self.optimizer, optimizer)
            self.lr_scheduler.load_state_dict(scheduler)
        masters = self.masters if self.cycle is None else self.cycle.masters
        if masters:
            masters.load_state_dict(state.load_state(Path(checkpoint), "masters"), checkpoint)

    def _save_scaler(self, output_dir: str) -> None:
        if self.accelerator.scaler is not None and self.args.should_save:
            state.save_state(self.accelerator.scaler.state_dict(), Path(output_dir), "scaler")

    def _load_scaler(self, checkpoint: str | None) -> None:
        if checkpoint is None or self.accelerator.scaler is None:
            return
        scaler = state.load_state(Path(checkpoint), "scaler")
        if scaler is None:
            raise InputError(f"{checkpoint} has no scaler.json: it is of a run without --fp16 True")
        self.accelerator.scaler.load_state_dict(scaler)

    def _save_rng_state(self, output_dir: str) -> None:
        folder = Path(output_dir)
        folder.mkdir(parents=True, exist_ok=True)  # another rank may not have made it yet
        state.save_state(state.random_states(), folder, self._rng_stem)

    def _load_rng_state(self, checkpoint: str | None) -> None:
        states = state.load_state(Path(checkpoint), self._rng_stem) if checkpoint is not None else None
        if states is not None:
            with usable(f"{checkpoint}: {self._rng_stem}.json"):
                state.set_random_states(states)
        elif checkpoint is not None:
            logger.warning("%s has no %s.json: random numbers are not those of the run", checkpoint, self._rng_stem)

    @property
    def _rng_stem(self) -> str:
        return "rng_state" if self.args.world_size <= 1 else f"rng_state_{self.args.process_index}"
