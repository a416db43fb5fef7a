"""Flags that older transformers had and scripts still pass: accepted, and acted on.

Every field here is absent from the `TrainingArguments` of transformers 5. What was given is moved to the present name
when the arguments are made; a value that nothing can be done with any more is an error that says so.
"""

from __future__ import annotations

import os
from dataclasses import dataclass, field, fields
from typing import Any

from llava.errors import InputError

GONE = "gone from transformers; accepted at its default alone"


def renamed(help: str, default: Any = None) -> Any:
    """A field for an old flag; None means that it was not given."""
    return field(default=default, metadata={"help": help})


@dataclass
class RenamedFlags:
    """Old spellings. They come before transformers' own arguments, hence a default for each."""

    overwrite_output_dir: bool = renamed("start again in an output_dir that holds a finished run", False)
    evaluation_strategy: str | None = renamed("now --eval_strategy")
    warmup_ratio: float = renamed("now --warmup_steps with a value below 1", 0.0)
    group_by_length: bool = renamed("sampler: batches of similar length", False)
    logging_dir: str | None = renamed("TensorBoard's folder, handed on in TENSORBOARD_LOGGING_DIR")
    no_cuda: bool = renamed("now --use_cpu", False)
    save_safetensors: bool = renamed("must stay True: nothing else is written", True)
    include_tokens_per_second: bool = renamed("now --include_num_input_tokens_seen", False)
    per_gpu_train_batch_size: int | None = renamed("now --per_device_train_batch_size")
    per_gpu_eval_batch_size: int | None = renamed("now --per_device_eval_batch_size")
    dispatch_batches: bool | None = renamed("now a key of --accelerator_config")
    split_batches: bool | None = renamed("now a key of --accelerator_config")
    adafactor: bool = renamed("now --optim adafactor", False)
    torchdynamo: str | None = renamed("now --torch_compile_backend")
    use_mps_device: bool = renamed("accepted; an MPS device is found by itself", False)
    half_precision_backend: str = renamed("accepted; autocast is the only one left", "auto")
    fp16_backend: str = renamed("accepted; autocast is the only one left", "auto")
    include_inputs_for_metrics: bool = renamed("now --include_for_metrics inputs", False)
    push_to_hub_model_id: str | None = renamed("now --hub_model_id")
    push_to_hub_token: str | None = renamed("now --hub_token")

    fp16_opt_level: str = renamed(GONE, "O1")
    jit_mode_eval: bool = renamed(GONE, False)
    use_ipex: bool = renamed(GONE, False)
    use_legacy_prediction_loop: bool = renamed(GONE, False)
    tpu_num_cores: int | None = renamed(GONE)
    tpu_metrics_debug: bool = renamed(GONE, False)
    past_index: int = renamed(GONE, -1)
    fsdp_min_num_params: int = renamed(GONE, 0)
    fsdp_transformer_layer_cls_to_wrap: str | None = renamed(GONE)
    push_to_hub_organization: str | None = renamed(GONE)
    mp_parameters: str = renamed(GONE, "")
    ray_scope: str = renamed(GONE, "last")

    def __post_init__(self) -> None:
        self._apply_renamed_flags()
        super().__post_init__()  # type: ignore[misc]

    def _apply_renamed_flags(self) -> None:
        """Move every old value to the name that is in force today."""
        now: Any = self  # transformers' own arguments, which come behind
        for old in fields(RenamedFlags):
            if old.metadata["help"] == GONE and getattr(self, old.name) != old.default:
                raise InputError(f"--{old.name} {getattr(self, old.name)}: transformers no longer has it; leave it out")
        if not self.save_safetensors:
            raise InputError("--save_safetensors False is not supported: weights are written as safetensors only")
        if self.warmup_ratio and not 0 <= self.warmup_ratio < 1:
            raise InputError(f"--warmup_ratio {self.warmup_ratio} must be in [0, 1)")
        if self.logging_dir:
            os.environ["TENSORBOARD_LOGGING_DIR"] = self.logging_dir
        if self.warmup_ratio and not now.warmup_steps:
            now.warmup_steps = self.warmup_ratio
        if self.no_cuda:
            now.use_cpu = True
        if self.include_tokens_per_second:
            now.include_num_input_tokens_seen = "all"
        if self.adafactor:
            now.optim = "adafactor"
        if getattr(self, "activation_checkpointing", self) is None:  # transformers 5's name of gradient_checkpointing
            now.activation_checkpointing = now.gradient_checkpointing
        if getattr(self, "train_sampling_strategy", None) == "group_by_length":  # transformers 5's name
            self.group_by_length = True
        if self.include_inputs_for_metrics:
            now.include_for_metrics = [*now.include_for_metrics, "inputs"]
        for name, new in _SAME_VALUE:
            if getattr(self, name) is not None:
                setattr(self, new, getattr(self, name))
        given = (name for name in ("dispatch_batches", "split_batches") if getattr(self, name) is not None)
        loader = {name: getattr(self, name) for name in given}
        if loader:
            now.accelerator_config = {**_as_dict(now.accelerator_config), **loader}


def checkpointing_options(args: Any) -> dict[str, Any]:
    """How layers run again in the backward pass, under the name that this version of transformers has for it."""
    own = getattr(args, "activation_checkpointing_kwargs", args.gradient_checkpointing_kwargs)
    return {"use_reentrant": False, **(own or {})}


# old name -> name in force, where the value is the same
_SAME_VALUE = (
    ("evaluation_strategy", "eval_strategy"),
    ("per_gpu_train_batch_size", "per_device_train_batch_size"),
    ("per_gpu_eval_batch_size", "per_device_eval_batch_size"),
    ("torchdynamo", "torch_compile_backend"),
    ("push_to_hub_model_id", "hub_model_id"),
    ("push_to_hub_token", "hub_token"),
)


OTHER_NAMES = (
    *_SAME_VALUE,
    ("adafactor", "optim"),
    ("warmup_ratio", "warmup_steps"),
    ("gradient_checkpointing", "activation_checkpointing"),
    ("gradient_checkpointing_kwargs", "activation_checkpointing_kwargs"),
    ("include_tokens_per_second", "include_num_input_tokens_seen"),
)
"""Two names, of old and present, of one thing."""


def _as_dict(config: Any) -> dict[str, Any]:
    if config is None:
        return {}
    if isinstance(config, dict):
        return config
    raise InputError(
        "--dispatch_batches / --split_batches cannot be mixed with an --accelerator_config file: put them there"
    )
