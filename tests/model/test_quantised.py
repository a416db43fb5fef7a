"""Language models in 4 and 8 bits: what is quantised, what stays, and that adapters on them train."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import nn

from llava.mezo.journal.files import Journal
from llava.model.builder import load_pretrained_model
from llava.train.train import train

pytest.importorskip("bitsandbytes")

pytestmark = pytest.mark.slow

TINY = Path(__file__).parents[2] / "playground" / "tiny-llava-onevision"
DATA = Path(__file__).parents[2] / "playground" / "data" / "scan"


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


@pytest.fixture
def words(tmp_path: Path) -> Callable[..., list[str]]:
    """Command line of two steps of an adapter on the tiny checkpoint."""

    def make(**flags: object) -> list[str]:
        values = {
            "model_name_or_path": TINY,
            "data_path": DATA / "val.json",
            "image_folder": DATA,
            "version": "qwen_1_5",
            "output_dir": tmp_path / "out",
            "lora_enable": True,
            "max_steps": 2,
            "per_device_train_batch_size": 2,
            "bf16": True,
            "report_to": "none",
            "disable_tqdm": True,
        }
        return [f"--{name}={value}" for name, value in (values | flags).items()]

    return make


@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("mode", ["regular", "zo"])
def test_an_adapter_on_a_quantised_model_trains(
    mode: str, bits: int, words: Callable[..., list[str]], tmp_path: Path
) -> None:
    train(argv=words(trainer_mode=mode, bits=bits))
    assert (tmp_path / "out" / "adapter_model.safetensors").exists()
    if mode == "zo":
        records = Journal.read(tmp_path / "out" / "mezo_journal").records
        assert all(record.losses[0] != record.losses[1] for record in records)
