"""LLaVA-OneVision training tree with zeroth-order (MeZO) fine-tuning.

Importing the package opens no file, no socket and no heavy module; `LlavaLlamaForCausalLM`
is resolved on first use because other people's code imports it from here.
"""

from __future__ import annotations

from typing import Any

__version__ = "0.2.0"


def __getattr__(name: str) -> Any:
    if name == "LlavaLlamaForCausalLM":
        from llava.model import LlavaLlamaForCausalLM

        return LlavaLlamaForCausalLM
    raise AttributeError(f"module 'llava' has no attribute {name!r}")
