"""Which parameters are trained, in which optimizer group, for every combination in the conformance data."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from llava.errors import InputError
from llava.train.flags.parsing import parse_arguments
from llava.train.parts.param_groups import parameter_groups
from llava.train.parts.tunable import parse_parts
from llava.train.train import build
from llava.train.zo.extended_trainer import ExtendedMeZOTrainer

pytestmark = pytest.mark.slow

GOLDEN = Path(__file__).parents[1] / "assets" / "golden" / "model"
TRAINABLE = json.loads((GOLDEN / "trainable.json").read_text())["cases"]
GROUPS = json.loads((GOLDEN / "optimizer_groups.json").read_text())["cases"]
ALL_PARTS = "mm_vision_tower,mm_mlp_adapter,mm_language_model"

Flags = Callable[..., list[str]]


def plain(name: str) -> str:
    """A parameter name without PEFT's levels."""
    return name.removeprefix("base_model.model.").replace(".base_layer.", ".").replace(".default.", ".")


@pytest.mark.parametrize("case", TRAINABLE, ids=lambda case: case["name"])
def test_trainable_parameters(case: dict[str, Any], flags: Flags, bases: dict[str, Path]) -> None:
    if "resampler" in str(case["arguments"].get("mm_tunable_parts")):
        pytest.skip("resamplers are left out")
    changes = {"mm_tunable_parts": None, "model_name_or_path": bases[case["base"]], **case["arguments"]}
    if changes.get("image_aspect_ratio") == "pad":
        changes["image_grid_pinpoints"] = None
    arguments = parse_arguments(flags(**changes))
    model, _ = build(*arguments)
    trainable = {plain(name): p for name, p in model.named_parameters() if p.requires_grad}
    expected = sorted(plain(name) for name in case["trainable"])
    assert sorted(trainable) == expected
    if not arguments[2].lora_enable:  # the data counts a table that is larger by the <image> token
        assert sum(p.numel() for p in trainable.values()) == case["trainable_numel"]
        spare = 0 if case["name"] != "im_start_end" else 11 * 32  # LLaVA-NeXT cuts padded tables; here they stay
        assert sum(p.numel() for p in model.parameters()) == case["total_numel"] + spare


@pytest.mark.parametrize("case", GROUPS, ids=lambda case: case["name"])
def test_optimizer_groups(case: dict[str, Any], flags: Flags, bases: dict[str, Path]) -> None:
    given = dict(case["arguments"])
    base = bases[given.pop("model", "qwen2-base-tied")]
    changes = {"mm_tunable_parts": ALL_PARTS, "model_name_or_path": base, **given}
    arguments = parse_arguments(flags(**changes))
    model, _ = build(*arguments)
    names = {id(p): name for name, p in model.named_parameters()}
    groups = parameter_groups(model, arguments[2])
    assert len(groups) == len(case["groups"])
    for group, expected in zip(groups, case["groups"], strict=True):
        assert sorted(names[id(p)] for p in group["params"]) == sorted(expected["params"])
        assert group.get("lr", arguments[2].learning_rate) == expected["lr"]
        assert group["weight_decay"] == expected["weight_decay"]


def test_mezo_decays_neither_norms_nor_biases(flags: Flags) -> None:
    arguments = parse_arguments(
        flags(trainer_mode="zo", weight_decay=0.1, mm_tunable_parts=ALL_PARTS, mm_projector_lr=3e-4)
    )
    model, tokenizer = build(*arguments)
    trainer = ExtendedMeZOTrainer(model=model, args=arguments[2], processing_class=tokenizer, train_dataset=[])
    groups = trainer.create_optimizer().param_groups
    decayed = {name for group in groups if group["weight_decay"] for name in group["param_names"]}
    exempt = {name for group in groups if not group["weight_decay"] for name in group["param_names"]}
    assert "model.norm.weight" in exempt
    assert "model.image_newline" in exempt
    assert "model.layers.0.input_layernorm.weight" in exempt
    assert "model.layers.0.self_attn.q_proj.weight" in decayed
    assert not decayed & exempt
    assert decayed | exempt == {name for name, p in model.named_parameters() if p.requires_grad}
    rates = {name: group["lr"] for group in groups for name in group["param_names"]}
    assert rates["model.mm_projector.0.weight"] == 3e-4
    assert rates["model.norm.weight"] == arguments[2].learning_rate


def test_unknown_and_empty_parts() -> None:
    with pytest.raises(InputError, match="allowed: mm_language_model, mm_mlp_adapter, mm_vision_tower"):
        parse_parts("mm_language_model,mm_head")
    with pytest.raises(InputError, match="empty"):
        parse_parts(" , ")
