"""Causal attention without a mask, for rows that are padded on the right: no token sees what comes after it.

A language model of transformers that gets no mask still looks whether several sequences are packed into a row, by
reading positions, which waits for the device. An attention function that is registered under a name for which there is
no function of masks gets none, and is causal by itself.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from transformers import AttentionInterface

_PREFIX = "unmasked_"


@contextmanager
def causal_without_mask(config: Any) -> Iterator[None]:
    """Within it a language model with this config makes no mask; nothing changes where its attention needs one.

    Attention in plain operations ("eager") and sliding windows are in the mask alone.
    """
    name = config._attn_implementation
    functions = AttentionInterface()
    if name not in functions or "sliding_attention" in (getattr(config, "layer_types", None) or ()):
        yield
        return
    AttentionInterface.register(_PREFIX + name, functions[name])
    config._attn_implementation = _PREFIX + name
    try:
        yield
    finally:
        config._attn_implementation = name
