"""`--tunable_layers`: some decoder layers alone are trained, and those below them run once a batch."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest import mock

import pytest
import torch
from safetensors.torch import load_file
from test_sparse_loss import batch, build
from transformers import OPTConfig, OPTForCausalLM

from llava.errors import InputError
from llava.mezo import MeZO, MeZOConfig
from llava.mezo.journal.files import Journal
from llava.mezo.journal.replay import main as replay
from llava.train.parts.tunable import parse_layers, select_trainable
from llava.train.train import train
from llava.train.zo import step_inputs
from llava.train.zo.laid_out_forwards import laid_out_loss
from llava.train.zo.step_inputs import StepInputs, frozen_beginning

Flags = Callable[..., list[str]]
EXTRAS: list[dict[str, Any]] = [
    {"freeze_vectors": True},
    {"zo_estimator": "fzoo", "zo_num_directions": 2, "zo_noise": "rademacher"},
    {"zo_estimator": "per_example", "per_device_train_batch_size": 2, "dataloader_drop_last": True},
]


def chosen(model: Any, layers: str | None, parts: str = "mm_language_model", freeze_vectors: bool = False) -> set[str]:
    """Names of what is trained with these flags."""
    flags = SimpleNamespace(mm_tunable_parts=parts, tunable_layers=layers, freeze_vectors=freeze_vectors)
    select_trainable(model, flags, SimpleNamespace(bits=16), frozenset())
    return {name for name, p in model.named_parameters() if p.requires_grad}


@pytest.mark.parametrize(
    ("value", "expected"), [("12-23", (12, 23)), ("12-", (12, None)), ("20", (20, 20)), (" 0 - 3 ", (0, 3))]
)
def test_layers_are_a_range(value: str, expected: tuple[int, int | None]) -> None:
    assert parse_layers(value) == expected


@pytest.mark.parametrize("value", ["", "-", "-3", "3-1", "1,2", "x", "1-2-3", "1.5", "¹"])
def test_other_words_are_refused(value: str) -> None:
    with pytest.raises(InputError, match="--tunable_layers"):
        parse_layers(value)


def test_only_the_language_models_layers_are_counted() -> None:
    model = build("llava_qwen")  # two layers, and a tower of three
    assert chosen(model, "1") == {n for n, _ in model.named_parameters() if n.startswith("model.layers.1.")}
    projector = {n for n, _ in model.named_parameters() if "mm_projector" in n}
    assert chosen(model, "0-", "mm_language_model,mm_mlp_adapter") == projector | {
        n for n, _ in model.named_parameters() if n.startswith("model.layers.")
    }
    with pytest.raises(InputError, match="--tunable_layers 1-2: the language model has 2 layers, 0 to 1"):
        chosen(model, "1-2")


def test_vectors_can_be_left_out() -> None:
    model = build("llava_qwen")
    names = chosen(model, None, freeze_vectors=True)
    assert "model.embed_tokens.weight" in names and "model.layers.0.mlp.up_proj.weight" in names
    assert not [name for name in names if "norm" in name or name.endswith("bias") or "newline" in name]
    assert chosen(model, "1", "mm_mlp_adapter,mm_language_model", True) == {
        name
        for name, p in model.named_parameters()
        if p.dim() > 1 and (("layers.1." in name and "vision" not in name) or "mm_projector" in name)
    }


def test_models_that_keep_their_layers_elsewhere() -> None:
    shape = {"hidden_size": 16, "ffn_dim": 16, "num_attention_heads": 2, "word_embed_proj_dim": 16, "vocab_size": 20}
    names = chosen(OPTForCausalLM(OPTConfig(num_hidden_layers=3, **shape)), "2-")
    assert names and all(name.startswith("model.decoder.layers.2.") for name in names)


@pytest.mark.parametrize("kind", ["llava_qwen", "llava_llama"])
@torch.no_grad()
def test_layers_below_run_once_a_batch_and_no_bit_changes(kind: str) -> None:
    model = build(kind, attention_dropout=0.5)
    chosen(model, "1")
    mezo = MeZO([p for p in model.parameters() if p.requires_grad], model, MeZOConfig())
    with mock.patch.object(step_inputs, "frozen_beginning", return_value=0):
        whole = StepInputs(model, mezo, 1)(batch("right", images=True))
    runs: list[int] = []
    for number, layer in enumerate(model.model.layers):
        layer.mlp.register_forward_hook(lambda *_, number=number: runs.append(number))
    inputs = StepInputs(model, mezo, 1)
    model.train()  # as the Trainer leaves it
    tensors = inputs(batch("right", images=True))
    assert model.training
    model.eval()
    assert inputs.begun == 1 and set(tensors) == {"states", "positions", "targets"} and runs == [0]
    losses = [laid_out_loss(model, tensors, begun=1) for _ in range(2)]
    assert runs == [0, 1, 1]
    assert losses[0] == losses[1] == laid_out_loss(model, whole)
    assert runs == [0, 1, 1, 0, 1]  # the model itself is as it was


def test_what_is_trained_before_the_layers_makes_them_run_each_time() -> None:
    model = build("llava_qwen")
    for parts, layers, expected in [
        ("mm_language_model", "1", 1),
        ("mm_language_model", "0", 0),
        ("mm_language_model,mm_mlp_adapter", "1", 0),
        ("mm_vision_tower,mm_language_model", "1", 0),
    ]:
        chosen(model, layers, parts)
        assert frozen_beginning(model) == expected
    chosen(model, "1")
    model.model.norm.weight.requires_grad_(True)
    assert frozen_beginning(model) == 1  # it comes after them
    model.model.image_newline.requires_grad_(True)
    assert frozen_beginning(model) == 0


@pytest.mark.slow
@pytest.mark.usefixtures("no_picture_of_the_loss")
@pytest.mark.parametrize("extra", EXTRAS)
def test_runs_with_and_without_a_beginning_are_the_same(
    extra: dict[str, Any], run_flags: Flags, small_tower_folder: Path, tmp_path: Path
) -> None:
    records, weights = [], []
    for begun in (True, False):
        out = tmp_path / str(begun)
        changes = {"output_dir": out, "tunable_layers": "1-", "mm_tunable_parts": "mm_language_model", "max_steps": 3}
        argv = run_flags(trainer_mode="zo", vision_tower=small_tower_folder, learning_rate=1e-3, **changes, **extra)
        with pytest.MonkeyPatch.context() as patch:
            if not begun:
                patch.setattr(step_inputs, "frozen_beginning", lambda model: 0)
            train(argv=argv)
        records.append([record.losses for record in Journal.read(out / "mezo_journal").records])
        weights.append((out / "model.safetensors").read_bytes())
    assert records[0] == records[1] and weights[0] == weights[1]
    header = Journal.read(tmp_path / "True" / "mezo_journal").header
    assert header.names and all(name.startswith("model.layers.1.") for name in header.names)


@pytest.mark.slow
@pytest.mark.usefixtures("no_picture_of_the_loss")
@pytest.mark.parametrize("mode", ["zo", "regular"])
def test_nothing_else_moves(mode: str, text_run: Flags, tmp_path: Path, refused: Callable[..., str]) -> None:
    argv = text_run(trainer_mode=mode, tunable_layers="1", max_steps=2, learning_rate=1e-2, save_steps=1)
    train(argv=argv)
    before = load_file(tmp_path / "out" / "checkpoint-1" / "model.safetensors") if mode == "regular" else None
    (tmp_path / "out" / "trainer_state.json").unlink()
    changed = [word if word != "1" or argv[k - 1] != "--tunable_layers" else "0" for k, word in enumerate(argv)]
    assert "--tunable_layers" in refused(train, argv=[*changed, "--resume_with_changes", "True"])
    if before is not None:
        after = load_file(tmp_path / "out" / "model.safetensors")
        moved = {name for name in after if not torch.equal(before[name], after[name])}
        assert moved and all(name.startswith("model.layers.1.") for name in moved)
    else:
        words = ["--journal", str(tmp_path / "out" / "mezo_journal"), "--output-dir", str(tmp_path / "again")]
        header = Journal.read(tmp_path / "out" / "mezo_journal").header
        assert replay(["--model-path", header.model, *words]) == 0
        assert (tmp_path / "again" / "model.safetensors").exists()
