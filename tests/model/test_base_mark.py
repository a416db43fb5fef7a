"""What an adapter knows of its base: the same weights under any name and in any files, and no others."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file, save_file

from llava.model.base_mark import BASE_SHA256, base_mark
from llava.model.builder import load_pretrained_model
from llava.model.merge import merge
from llava.model.own_settings import read_config
from llava.train.parts.saving import save_adapter, save_lora

TINY = Path(__file__).parents[2] / "playground" / "tiny-llava-onevision"
WEIGHTS = "model.safetensors"


def changed(tmp_path: Path, name: str = "model.norm.weight", row: int = 0, scale: float = 2.0) -> Path:
    """A copy of the base in which one row of a tensor is another."""
    folder = tmp_path / f"{name}-{row}"
    shutil.copytree(TINY, folder)
    tensors = load_file(folder / WEIGHTS)
    tensors[name][row] *= scale
    save_file(tensors, folder / WEIGHTS, metadata={"format": "pt"})
    return folder


def load(path: Path, base: Path | None) -> torch.nn.Module:
    return load_pretrained_model(str(path), base and str(base), "llava", torch_dtype="float32")[1]


@pytest.fixture(params=["adapter", "projector"])
def part(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """What a run on the tiny model saved."""
    model, folder = load(TINY, None), tmp_path / f"llava-{request.param}"
    folder.mkdir()
    if request.param == "projector":
        save_adapter(model, folder)
    else:
        config = LoraConfig(r=2, target_modules=["q_proj"], task_type="CAUSAL_LM")
        save_lora(get_peft_model(model, config), folder)
    return folder


def test_files_and_folders_do_not_count(tmp_path: Path) -> None:
    load(TINY, None).save_pretrained(tmp_path / "one")
    load(TINY, None).save_pretrained(tmp_path / "several", max_shard_size="500KB")
    assert len(list((tmp_path / "several").glob("*.safetensors"))) > 2
    assert base_mark(str(tmp_path / "one")) == base_mark(str(tmp_path / "several")) != base_mark(str(TINY))  # float32


@pytest.mark.parametrize("row", [0, -1])
@pytest.mark.parametrize(
    "name", ["model.layers.1.mlp.down_proj.weight", "model.norm.weight", "model.mm_projector.0.bias"]
)
def test_other_weights_have_another_mark(name: str, row: int, tmp_path: Path) -> None:
    assert base_mark(str(changed(tmp_path, name, row, 1.01))) != base_mark(str(TINY))


def test_without_safetensors_there_is_none(tmp_path: Path) -> None:
    torch.save(load_file(TINY / WEIGHTS), tmp_path / "pytorch_model.bin")
    assert base_mark(str(tmp_path)) is base_mark("") is None


def test_half_a_download_has_none(tmp_path: Path) -> None:
    load(TINY, None).save_pretrained(tmp_path, max_shard_size="500KB")
    next(iter(tmp_path.glob("model-00002*"))).unlink()
    assert base_mark(str(tmp_path)) is None


def test_a_renamed_base_is_the_base(part: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    shutil.copytree(TINY, tmp_path / "renamed")
    load(part, tmp_path / "renamed")
    assert "was trained on" not in caplog.text


def test_another_base_is_warned_about(part: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    other = changed(tmp_path)
    load(part, other)
    assert f"{part} was trained on " in caplog.text and f"other weights than {other} has" in caplog.text


def test_a_merged_model_has_no_base(part: Path, tmp_path: Path) -> None:
    assert read_config(str(part))[BASE_SHA256] == base_mark(str(TINY))
    if part.name.endswith("adapter"):
        merge(str(part), str(TINY), tmp_path / "merged")
        assert BASE_SHA256 not in read_config(str(tmp_path / "merged"))
    assert not hasattr(load(part, TINY).config, BASE_SHA256)
