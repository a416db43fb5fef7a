"""`--report_to`: trackers without their package, or without a login, are refused before anything is loaded."""

from __future__ import annotations

import importlib.util
import os
from typing import Any

from transformers.integrations.integration_utils import INTEGRATION_TO_CALLBACK

from llava.errors import InputError, in_one_line

EXTRAS = {"tensorboard": ("tensorboard", "tensorboardX"), "wandb": ("wandb",)}
"""Trackers that pyproject.toml has an extra for, each with the packages of which it needs one."""


def check_reporters(names: Any) -> None:
    """`InputError` for the first tracker of `--report_to` that cannot be used; it says how it could.

    Args:
        names: one name or a list of them; all and none are names too.
    """
    for name in [names] if isinstance(names, str) else names or []:
        if name in ("all", "none"):
            continue
        if name not in INTEGRATION_TO_CALLBACK:
            allowed = ", ".join(sorted(INTEGRATION_TO_CALLBACK))
            raise InputError(f"--report_to {name}: allowed are {allowed}, all and none")
        if name in EXTRAS and not any(map(importlib.util.find_spec, EXTRAS[name])):
            raise InputError(
                f"--report_to {name} needs the package {EXTRAS[name][0]}: pip install -e '.[{name}]' in this "
                "checkout, or give --report_to none"
            )
        if name == "wandb":
            _check_wandb()


def _check_wandb() -> None:
    """Its login is asked for now, not after minutes of loading."""
    if os.environ.get("WANDB_MODE", "online") != "online" or os.environ.get("RANK", "0") != "0":
        return
    import wandb

    said = ""
    try:
        known = wandb.login()
    except Exception as error:  # wandb has kinds of its own
        known, said = False, f" ({in_one_line(error)})"
    if not known:
        raise InputError(
            f"--report_to wandb: no login{said}. Run `wandb login`, set WANDB_API_KEY, or set WANDB_MODE=offline, "
            "which keeps the run in ./wandb"
        )
