"""Resamplers between tower and projector are not supported; only their absence, the identity, can be asked for."""

from __future__ import annotations

from typing import Any

from torch import nn

from llava.errors import InputError


def build_vision_resampler(model_args: Any, delay_load: bool = False, **kwargs: Any) -> nn.Module:
    """The identity, for `mm_resampler_type` None or "identity"; an InputError for every other type."""
    kind = getattr(model_args, "mm_resampler_type", None)
    if kind not in (None, "identity"):
        raise InputError(f"--mm_resampler_type {kind!r} is not supported; allowed: identity, or leave the flag out.")
    return nn.Identity()
