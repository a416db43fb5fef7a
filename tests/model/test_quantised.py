"""Language models in 4 and 8 bits: what is quantised, and what stays."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

from llava.model.builder import load_pretrained_model

pytest.importorskip("bitsandbytes")

pytestmark = pytest.mark.slow

TINY = Path(__file__).parents[2] / "playground" / "tiny-llava-onevision"


def kinds(model: nn.Module) -> dict[str, set[str]]:
    """Part of the model -> the kinds of its linear layers."""
    found: dict[str, set[str]] = {}
    for name, module in model.named_modules():
        if "Linear" in type(module).__name__:
            found.setdefault(name.split(".")[1] if "." in name else name, set()).add(type(module).__name__)
    return found


@pytest.mark.parametrize(("flag", "layer"), [("load_4bit", "Linear4bit"), ("load_8bit", "Linear8bitLt")])
def test_vision_modules_and_head_stay_as_they_are(flag: str, layer: str) -> None:
    _, model, _, _ = load_pretrained_model(
        str(TINY), None, "llava_qwen", device_map="cpu", attn_implementation="sdpa", **{flag: True}
    )
    plain = {"Linear"}
    assert kinds(model) == {"layers": {layer}, "vision_tower": plain, "mm_projector": plain, "lm_head": plain}
    assert {p.dtype for p in model.get_vision_tower().parameters()} == {torch.float16}
