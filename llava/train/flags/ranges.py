"""Numbers that no run can use, whatever the flag: not finite, negative, too large, too small.

Flags of transformers that are new here are looked at as all others are; only exceptions have a name.
"""

from __future__ import annotations

import math
from typing import Any

from llava.errors import InputError

LARGEST = 2**63 - 1
LARGEST_SEED = 2**32 - 1  # NumPy's, which transformers seeds too

SIGNED = {"max_steps", "mm_vision_select_layer", "local_rank", "past_index", "image_window", "frames_upbound"}
"""Those that may be negative, or have a check of their own."""

LEAST = {
    "gradient_accumulation_steps": 1,
    "per_device_train_batch_size": 1,
    "per_device_eval_batch_size": 1,
    "per_gpu_train_batch_size": 1,
    "per_gpu_eval_batch_size": 1,
    "dataloader_prefetch_factor": 1,
    "model_max_length": 1,
    "save_total_limit": 1,
    "lora_r": 1,
    "lora_alpha": 1,
    "adapter_r": 1,
    "adapter_alpha": 1,
    "adapter_tokens": 1,
    "mm_spatial_pool_stride": 1,
    "faster_token_stride": 1,
    "pos_skipping_range": 1,
    "ddp_bucket_cap_mb": 1,
    "ddp_timeout": 1,
}
MOST = {"seed": LARGEST_SEED, "data_seed": LARGEST_SEED, "ddp_timeout": 10**9}
ABOVE = {"logging_steps": 0, "eval_steps": 0, "save_steps": 0, "mm_feature_cache_gb": 0, "rope_scaling_factor": 0}
BELOW = {
    "adam_beta1": 1,
    "adam_beta2": 1,
    "lora_dropout": 1,
    "adapter_dropout": 1,
    "label_smoothing_factor": 1,
    "warmup_ratio": 1,
}


def check_numbers(values: Any) -> None:
    """`InputError` for the first number among these attributes that is out of its range.

    Flags of MeZO are not looked at: `llava.train.zo.settings` has their ranges.
    """
    for name, given in vars(values).items():
        for value in given if isinstance(given, list) else [given]:
            if isinstance(value, (int, float)) and not isinstance(value, bool) and not name.startswith("zo_"):
                _check(name, value)


def _check(name: str, value: float) -> None:
    least = LEAST.get(name, -LARGEST if name in SIGNED else 0)
    if not math.isfinite(value):
        problem = "must be a finite number"
    elif name in ABOVE and value <= ABOVE[name]:
        problem = f"must be above {ABOVE[name]}"
    elif value < least:
        problem = f"must be at least {least}"
    elif name in BELOW and value >= BELOW[name]:
        problem = f"must be below {BELOW[name]}"
    elif isinstance(value, int) and value > MOST.get(name, LARGEST):
        problem = f"must be at most {MOST.get(name, LARGEST)}"
    else:
        return
    raise InputError(f"--{name} {value} {problem}")
