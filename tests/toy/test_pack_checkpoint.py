"""The packed checkpoint: smaller, loadable, and without the paths of the machine it was trained on."""

from __future__ import annotations

import json

import pytest
import torch
from safetensors.torch import load_file, save_file

from llava.errors import InputError
from llava.toy import pack_checkpoint


@pytest.fixture
def run(tmp_path):
    folder = tmp_path / "run"
    folder.mkdir()
    save_file({"model.norm.weight": torch.linspace(-1, 1, 300)}, folder / "model.safetensors")
    config = {"mm_vision_tower": "/home/me/tower", "mm_vision_tower_lr": 1e-3, "hidden_size": 8, "_name_or_path": "/x"}
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "tokenizer.json").write_text("{}")
    (folder / "training_args.bin").write_text("paths")
    return folder


def test_what_is_kept_and_what_is_not(run, tmp_path, capsys):
    pack_checkpoint.main(["--run", str(run), "--output", str(tmp_path / "packed")])
    packed = tmp_path / "packed"
    assert sorted(file.name for file in packed.iterdir()) == ["config.json", "model.safetensors", "tokenizer.json"]
    config = json.loads((packed / "config.json").read_text())
    assert config == {"mm_vision_tower": pack_checkpoint.TOWER_NAME, "hidden_size": 8, "torch_dtype": "float32"}
    before = load_file(run / "model.safetensors")["model.norm.weight"]
    after = load_file(packed / "model.safetensors")["model.norm.weight"]
    assert after.dtype == torch.bfloat16
    assert torch.equal(after, before.bfloat16())
    assert "MB" in capsys.readouterr().out


def test_an_unfinished_run_is_named(tmp_path):
    with pytest.raises(InputError, match=r"--run .*finished run"):
        pack_checkpoint.pack(tmp_path, tmp_path / "packed")
