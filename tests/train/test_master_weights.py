"""Weights in bfloat16 are trained as float32 ones are, whatever the optimizer."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from finished_runs import report_of, same, weights
from torch import nn
from transformers.optimization import Adafactor

from llava.errors import InputError
from llava.train.parts.master_weights import MasterWeights
from llava.train.train import train

Flags = Callable[..., list[str]]
OPTIMIZERS: dict[str, Callable[[list], torch.optim.Optimizer]] = {
    "AdamW": lambda groups: torch.optim.AdamW(groups, lr=1e-6, foreach=True),
    "SGD": lambda groups: torch.optim.SGD(groups, lr=1e-6, momentum=0.9),
    "Adafactor": lambda groups: Adafactor(groups, lr=1e-6, relative_step=False, scale_parameter=False),
}


def network(dtype: torch.dtype) -> nn.Module:
    torch.manual_seed(0)
    layers = nn.Sequential(nn.Linear(16, 32), nn.Tanh(), nn.Linear(32, 4)).to(torch.bfloat16)
    layers[0].bias.requires_grad_(False)
    return layers.to(dtype)


def gradients(step: int, model: nn.Module) -> None:
    for number, p in enumerate(p for p in model.parameters() if p.requires_grad):
        values = torch.randn(p.shape, generator=torch.Generator().manual_seed(100 * step + number))
        p.grad = values.to(torch.bfloat16).to(p.dtype)


@pytest.mark.parametrize("kind", OPTIMIZERS)
def test_masters_are_the_weights_of_a_run_in_float32(kind: str) -> None:
    rounded, plain = network(torch.bfloat16), network(torch.float32)
    masters = MasterWeights(rounded)
    optimizer = OPTIMIZERS[kind](masters.replace([{"params": list(rounded.parameters()), "weight_decay": 0.0}]))
    masters.attach(optimizer)
    expected = OPTIMIZERS[kind]([{"params": list(plain.parameters()), "weight_decay": 0.0}])
    for step in range(20):
        gradients(step, rounded)
        gradients(step, plain)
        optimizer.step()
        expected.step()
        assert all(p.grad is None for p in rounded.parameters())
    values = masters.state_dict()
    trained = {name: p.detach() for name, p in plain.named_parameters() if p.requires_grad}
    assert values.keys() == trained.keys() and len(values) == 3
    assert all(torch.equal(values[name], trained[name]) for name in trained)
    assert all(torch.equal(p, trained[name].to(p)) for name, p in rounded.named_parameters() if name in trained)
    start = network(torch.float32).state_dict()
    assert all((values[name] != start[name]).float().mean() > 0.99 for name in values)


def test_without_masters_bfloat16_stays_where_it_is() -> None:
    """What they are for."""
    model, start = network(torch.bfloat16), network(torch.bfloat16).state_dict()
    optimizer = OPTIMIZERS["AdamW"]([{"params": list(model.parameters()), "weight_decay": 0.0}])
    for step in range(20):
        gradients(step, model)
        optimizer.step()
    changed = torch.cat([(p != start[name]).flatten() for name, p in model.named_parameters()])
    assert changed.float().mean() < 0.2


def test_masters_of_others_are_refused() -> None:
    masters = MasterWeights(network(torch.bfloat16))
    for state in (None, {}, {"0.weight": torch.zeros(32, 16)}):
        with pytest.raises(InputError, match="checkpoint-2 has no float32 masters"):
            masters.load_state_dict(state, "checkpoint-2")
    assert not MasterWeights(network(torch.float32))


@pytest.mark.slow
def test_a_run_in_bfloat16_goes_on_from_its_masters(flags: Flags, small_tower_folder: Path, tmp_path: Path) -> None:
    changes = {"vision_tower": small_tower_folder, "mm_tunable_parts": "mm_language_model", "learning_rate": 1e-6}
    changes |= {
        "bf16": True,
        "trainer_mode": "regular",
        "max_steps": 4,
        "save_steps": 2,
        "per_device_train_batch_size": 2,
    }
    train(argv=flags(**changes, output_dir=tmp_path / "whole"))
    shutil.copytree(tmp_path / "whole" / "checkpoint-2", tmp_path / "half" / "checkpoint-2")
    train(argv=flags(**changes, output_dir=tmp_path / "half"))
    whole, half = (weights(tmp_path / name / "checkpoint-4", "masters.safetensors") for name in ("whole", "half"))
    before = weights(tmp_path / "whole" / "checkpoint-2", "masters.safetensors")
    assert same(whole, half) and len(whole) > 3
    changed = torch.cat([(whole[name] != before[name]).flatten() for name in whole]).float().mean()
    assert changed > 0.5  # the table has rows of words that do not come
    assert report_of(tmp_path / "half")["steps"] == 4
