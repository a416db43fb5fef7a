"""Kinds of adapters: their names in `--adapter`, and what becomes of those that PEFT calls so.

Sources of those that PEFT has: LoRA (Hu et al. 2021), rank-stabilised LoRA (Kalajdzievski 2023), DoRA (Liu et al.
2024), IA3 (Liu et al. 2022), layer norms alone (Zhao et al. 2023). Those of the others are in `llava.model.tuners`.
"""

from __future__ import annotations

LORA_FAMILY = ("lora", "rslora", "dora", "pissa", "milora")
FROM_WEIGHTS = ("pissa", "milora")
"""Those that start from singular vectors of the weights."""
VIRTUAL_TOKENS = ("prefix", "prompt")
ADAPTERS = ("none", *LORA_FAMILY, "mora", *VIRTUAL_TOKENS, "houlsby", "ia3", "ln")

MERGED = ("LORA", "MORA", "IA3", "LN_TUNING")
"""Adapters that become weights, by `peft_type` in adapter_config.json."""
IN_LAYERS = ("HOULSBY",)
"""Those that stay beside the layers they change; all others are PEFT's wrapper around the model."""

INITIAL = "initial"
"""Name of the frozen adapter that takes the start of a PiSSA or MiLoRA adapter off the weights."""


def is_initial(name: str) -> bool:
    """Whether a parameter, by its full name, belongs to that one."""
    return f".{INITIAL}." in name
