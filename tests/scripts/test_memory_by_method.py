"""Peak memory of a step by method: bytes of live tensors, counted."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[2] / "scripts" / "study"))

import memory


def counted(method):
    options = argparse.Namespace(shape="tiny", device="cpu", count=True, tokens=192, steps=2, supervised=12)
    return memory.measure(options, method)


@pytest.mark.parametrize("kind", ["lora", "prefix", "prompt", "mora"])
def test_a_step_of_mezo_takes_less_than_one_of_adamw_on_the_same_adapter(kind):
    plain, mezo, adamw = counted("inference"), counted(f"{kind}_mezo"), counted(f"{kind}_adamw")
    assert mezo["weights"] == adamw["weights"] > plain["weights"]  # the adapter's own are among them
    assert 0 < mezo["over_weights"] < adamw["over_weights"]


def test_every_kind_of_adapter_has_both_optimizers():
    assert memory.METHODS["ia3_mezo"] == "ia3 + MeZO" and memory.METHODS["lora_adamw"] == "LoRA + AdamW"
    assert not set(memory.USUAL) - set(memory.METHODS) and "none_mezo" not in memory.METHODS
