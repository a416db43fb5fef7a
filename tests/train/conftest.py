"""Base models of the conformance data, and a small data set, made once per test session."""

from __future__ import annotations

import functools
import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM, Qwen2Config, Qwen2ForCausalLM, SiglipVisionConfig

PLAYGROUND = Path(__file__).parents[2] / "playground"
SMALL = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": 4096,
}


@pytest.fixture(scope="session")
def tower_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A SigLIP folder of the real width and image size with two layers, of which LLaVA keeps one."""
    return write_tower(tmp_path_factory.mktemp("tower"), hidden_size=1152, intermediate_size=64, num_attention_heads=16)


@pytest.fixture(scope="session")
def small_tower_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A SigLIP folder small enough for training in a test: 28 pixels, patches of 14."""
    return write_tower(
        tmp_path_factory.mktemp("small_tower"),
        hidden_size=16,
        intermediate_size=32,
        num_attention_heads=2,
        image_size=28,
    )


@pytest.fixture(scope="session")
def fullmodel(golden: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Flags that start a run from golden/fullmodel, whose tower has a config of its own."""
    tower = tmp_path_factory.mktemp("fullmodel_tower")
    shutil.copy(golden / "fullmodel" / "vision_tower_config.json", tower / "config.json")
    return {"model_name_or_path": golden / "fullmodel" / "checkpoint", "vision_tower": tower}


def write_tower(folder: Path, image_size: int = 384, **shape: int) -> Path:
    """A random SigLIP vision model as its own folder, with both configs."""
    from transformers import SiglipVisionModel

    torch.manual_seed(3)
    config = SiglipVisionConfig(num_hidden_layers=2, image_size=image_size, patch_size=14, **shape)
    SiglipVisionModel(config).to(torch.bfloat16).save_pretrained(folder)  # the same weights at any precision
    processor = {"size": {"height": image_size, "width": image_size}, "image_mean": [0.5] * 3, "image_std": [0.5] * 3}
    (folder / "preprocessor_config.json").write_text(json.dumps(processor))
    return folder


@pytest.fixture(scope="session")
def bases(golden: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Plain language models by the names the conformance data uses: qwen2-base-tied, qwen2-base, llama-base."""
    root = tmp_path_factory.mktemp("bases")
    torch.manual_seed(5)
    qwen = {"vocab_size": 916, "num_key_value_heads": 2, "bos_token_id": 900, "eos_token_id": 902, "rope_theta": 1e6}
    models = {
        "qwen2-base-tied": (Qwen2ForCausalLM(Qwen2Config(**SMALL, **qwen, tie_word_embeddings=True)), "tokenizer_qwen"),
        "qwen2-base": (Qwen2ForCausalLM(Qwen2Config(**SMALL, **qwen, tie_word_embeddings=False)), "tokenizer_qwen"),
        "llama-base": (
            LlamaForCausalLM(LlamaConfig(**SMALL, vocab_size=700, num_key_value_heads=2, tie_word_embeddings=False)),
            "tokenizer_llama",
        ),
    }
    folders = {}
    for name, (model, tokenizer) in models.items():
        folders[name] = root / name
        model.to(torch.bfloat16).save_pretrained(folders[name])
        for file in (golden / tokenizer).iterdir():
            shutil.copy(file, folders[name])
    return folders


@pytest.fixture(scope="session")
def run_flags(bases: dict[str, Path], tower_folder: Path, golden: Path) -> Callable[..., list[str]]:
    """Command line of a run as the conformance data was made, with changes by keyword (None drops a flag)."""

    def make(**changes: Any) -> list[str]:
        values: dict[str, Any] = {
            "model_name_or_path": bases["qwen2-base-tied"],
            "vision_tower": tower_folder,
            "version": "qwen_1_5",
            "data_path": golden / "fullmodel" / "data" / "data.json",
            "image_folder": golden / "fullmodel" / "data" / "images",
            "mm_projector_type": "mlp2x_gelu",
            "mm_vision_select_layer": -2,
            "mm_use_im_patch_token": False,
            "mm_patch_merge_type": "spatial_unpad",
            "image_aspect_ratio": "anyres_max_9",
            "image_grid_pinpoints": "(1x1),...,(6x6)",
            "attn_implementation": "sdpa",
            "model_max_length": 2048,
            "report_to": "none",
            "bf16": True,
            "gradient_checkpointing": False,
        }
        values.update(changes)
        words: list[str] = []
        for name, value in values.items():
            if value is not None:
                words += [f"--{name}", str(value)]
        return words

    return make


@pytest.fixture()
def flags(run_flags: Callable[..., list[str]], tmp_path: Path) -> Callable[..., list[str]]:
    """`run_flags` with an output folder of the test's own."""
    return functools.partial(run_flags, output_dir=tmp_path / "out")


@pytest.fixture()
def tiny_run(tmp_path: Path) -> Callable[..., list[str]]:
    """Command line of a run of the tiny checkpoint in bfloat16, with changes by keyword; `out`: its folder's name."""

    def make(out: str = "out", **flags: object) -> list[str]:
        values = {
            "model_name_or_path": PLAYGROUND / "tiny-llava-onevision",
            "data_path": PLAYGROUND / "data" / "scan" / "val.json",
            "image_folder": PLAYGROUND / "data" / "scan",
            "output_dir": tmp_path / out,
            "per_device_train_batch_size": 2,
            "learning_rate": 1e-3,
            "bf16": True,
            "report_to": "none",
            "disable_tqdm": True,
        }
        return [f"--{name}={value}" for name, value in (values | flags).items()]

    return make


@pytest.fixture()
def small_run(flags: Callable[..., list[str]], small_tower_folder: Path) -> Callable[..., list[str]]:
    """Command line of a zeroth-order run of three steps, one sample at a time."""

    settings = {
        "vision_tower": small_tower_folder,
        "trainer_mode": "zo",
        "gradient_checkpointing": None,
        "mm_tunable_parts": "mm_language_model",
        "bf16": None,
        "max_steps": 3,
        "per_device_train_batch_size": 1,
        "logging_steps": 1,
        "learning_rate": 1e-3,
        "lr_scheduler_type": "constant",
        "save_strategy": "no",
        "disable_tqdm": True,
    }
    return functools.partial(flags, **settings)


@pytest.fixture()
def text_run(flags: Callable[..., list[str]], tmp_path: Path) -> Callable[..., list[str]]:
    """Command line of a zeroth-order run on six records of text, whose answers are "A 0" and "A 1" in turns."""
    records = [
        {"id": k, "conversations": [{"from": "human", "value": f"{k} ?"}, {"from": "gpt", "value": f"A {k % 2}"}]}
        for k in range(6)
    ]
    data = tmp_path / "data.json"
    data.write_text(json.dumps(records))
    usual = {"trainer_mode": "zo", "mm_tunable_parts": "mm_language_model", "learning_rate": 1e-3, "disable_tqdm": True}
    return functools.partial(flags, **usual, data_path=data)


@pytest.fixture(scope="module")
def no_picture_of_the_loss() -> Iterator[None]:
    """Drawing it takes longer than a step of the runs in tests."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("llava.train.train.plot_loss", lambda *args, **kwargs: None)
        yield
