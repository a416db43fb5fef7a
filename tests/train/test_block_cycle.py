"""One block of layers at a time: what is trained when, and that each visit is AdamW on that block alone."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from finished_runs import report_of, same, weights
from torch import nn
from transformers import Qwen2Config, Qwen2ForCausalLM

from llava.errors import InputError
from llava.train.parts.block_cycle import BlockCycle, blocks_of
from llava.train.train import train

Flags = Callable[..., list[str]]
LAYERS, STEPS = 3, 2


def network(dtype: torch.dtype = torch.bfloat16) -> Any:
    torch.manual_seed(0)
    shape = {"hidden_size": 16, "intermediate_size": 32, "num_attention_heads": 2, "num_key_value_heads": 1}
    return Qwen2ForCausalLM(Qwen2Config(**shape, vocab_size=40, num_hidden_layers=LAYERS)).to(dtype)


def cycle_of(model: nn.Module, seed: int = 0) -> BlockCycle:
    decayed, plain = [], []
    for parameter in model.parameters():
        (decayed if parameter.dim() > 1 else plain).append(parameter)
    groups = [{"params": decayed, "weight_decay": 0.1}, {"params": plain, "weight_decay": 0.0}]
    return BlockCycle(model, groups, lambda groups: torch.optim.AdamW(groups, lr=1e-2), STEPS, seed)


def backward(model: Any, step: int) -> None:
    ids = torch.randint(0, 40, (2, 5), generator=torch.Generator().manual_seed(step))
    model(input_ids=ids, labels=ids).loss.backward()


def changed(model: nn.Module, before: dict[str, torch.Tensor]) -> set[str]:
    return {name for name, p in model.named_parameters() if not torch.equal(p, before[name])}


def values(model: nn.Module) -> dict[str, torch.Tensor]:
    return {name: p.detach().clone() for name, p in model.named_parameters()}


def test_a_block_is_a_layer_or_the_rest_without_word_embeddings() -> None:
    model = network()
    model.model.layers[1].mlp.up_proj.weight.requires_grad_(False)
    blocks, left_out = blocks_of(model)
    assert len(blocks) == LAYERS + 1 and list(blocks[-1]) == ["model.norm.weight"]
    assert left_out.keys() == {"model.embed_tokens.weight", "lm_head.weight"}
    for number, block in enumerate(blocks[:-1]):
        layer = dict(model.model.layers[number].named_parameters(prefix=f"model.layers.{number}"))
        assert block.keys() == {name for name, p in layer.items() if p.requires_grad}
    assert "model.layers.1.mlp.up_proj.weight" not in blocks[1]


def test_each_visit_trains_its_block_and_a_cycle_visits_each_once() -> None:
    model = network()
    cycle = cycle_of(model)
    visited = []
    for visit in range(2 * (LAYERS + 1)):
        block, before = cycle.block(visit), values(model)
        for step in range(STEPS):
            assert {name for name, p in model.named_parameters() if p.requires_grad} == block.keys()
            backward(model, STEPS * visit + step)
            assert {name for name, p in model.named_parameters() if p.grad is not None} == block.keys()
            held = [p for group in cycle.optimizer.param_groups for p in group["params"]]
            assert sum(p.numel() for p in held) == sum(p.numel() for p in block.values())
            assert all(p.dtype == torch.float32 for p in held)
            cycle.optimizer.step()
        assert changed(model, before) == block.keys()
        visited.append(min(block))
    first, second = visited[: LAYERS + 1], visited[LAYERS + 1 :]
    assert len(set(first)) == len(set(second)) == LAYERS + 1
    assert any(min(cycle_of(network(), seed=s).block(0)) != first[0] for s in range(1, 6))


def test_a_visit_is_adamw_on_the_block_alone_from_the_beginning() -> None:
    """In float32, from moments of zero, whatever came before."""
    model = network(torch.float32)
    cycle = cycle_of(model)
    for step in range(STEPS):
        backward(model, step)
        cycle.optimizer.step()
    plain = network(torch.float32)
    plain.load_state_dict(model.state_dict())
    block = cycle.block(1)
    mine = {name: p for name, p in plain.named_parameters() if name in block}
    decayed, rest = ([p for p in mine.values() if (p.dim() > 1) == is_matrix] for is_matrix in (True, False))
    optimizer = torch.optim.AdamW(
        [{"params": decayed, "weight_decay": 0.1}, {"params": rest, "weight_decay": 0.0}], lr=1e-2
    )
    for step in range(STEPS):
        for one, stepping in ((model, cycle.optimizer), (plain, optimizer)):
            backward(one, 10 + step)
            stepping.step()
            one.zero_grad()
    assert all(torch.equal(p, dict(plain.named_parameters())[name]) for name, p in model.named_parameters())


def test_one_block_is_no_cycle() -> None:
    model = network().requires_grad_(False)
    model.model.norm.weight.requires_grad_(True)
    with pytest.raises(InputError, match=r"--cycle_blocks 2: .* has 1 blocks"):
        cycle_of(model)


def test_all_weights_count_as_trained_at_the_end() -> None:
    model = network()
    cycle = cycle_of(model)
    assert sum(p.requires_grad for p in model.parameters()) < 15
    cycle.finish()
    assert all(p.requires_grad for p in model.parameters())
    tables = model.lm_head.weight.numel() + model.model.embed_tokens.weight.numel()
    assert cycle.trained == sum(p.numel() for p in model.parameters()) - tables


@pytest.mark.slow
@pytest.mark.parametrize("precision", [{"bf16": True}, {"bf16": False}, {"bf16": False, "fp16": True}])
@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.usefixtures("no_picture_of_the_loss")
def test_a_run_goes_on_in_the_middle_of_a_visit(
    checkpointing: bool, precision: dict[str, bool], flags: Flags, small_tower_folder: Path, tmp_path: Path
) -> None:
    changes = {
        "vision_tower": small_tower_folder,
        "mm_tunable_parts": "mm_vision_tower,mm_mlp_adapter,mm_language_model",
        "cycle_blocks": 2,
        "gradient_checkpointing": checkpointing,
        "gradient_accumulation_steps": 2,
        "learning_rate": 1e-3,
        "max_steps": 8,
        "save_steps": 3,
        "logging_steps": 1,
        "per_device_train_batch_size": 1,
        **precision,
    }
    train(argv=flags(**changes, output_dir=tmp_path / "whole"))
    for part in (3, 6):  # in the middle of a visit, and at the end of one
        half = tmp_path / f"from-{part}"
        shutil.copytree(tmp_path / "whole" / f"checkpoint-{part}", half / f"checkpoint-{part}")
        train(argv=flags(**changes, output_dir=half))
        whole = weights(tmp_path / "whole")
        assert same(whole, weights(half))
    before = weights(tmp_path / "whole" / "checkpoint-3", "model.safetensors")
    layers = {name.rsplit(".", 3)[0] for name in whole if not torch.equal(whole[name], before[name])}
    assert layers
    report = report_of(tmp_path / "whole")
    assert report["not_in_a_block"] == ["model.embed_tokens.weight"] and report["trainable_parameters"] > 10_000


@pytest.mark.slow
@pytest.mark.usefixtures("no_picture_of_the_loss")
def test_another_length_of_visits_is_another_run(
    flags: Flags, small_tower_folder: Path, tmp_path: Path, refused: Callable[..., str]
) -> None:
    changes = {"vision_tower": small_tower_folder, "mm_tunable_parts": "mm_language_model", "save_steps": 2}
    train(argv=flags(**changes, cycle_blocks=2, max_steps=2))
    (tmp_path / "out" / "trainer_state.json").unlink()
    assert "--cycle_blocks 2 (now 3)" in refused(train, argv=flags(**changes, cycle_blocks=3, max_steps=4))
