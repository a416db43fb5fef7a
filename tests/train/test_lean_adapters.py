"""Steps of adapters that take less memory: equal gradients, and nothing run more often."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch import nn
from transformers import Qwen2Config, Qwen2ForCausalLM

from llava.train.parts import lean_adapters
from llava.train.parts.lean_adapters import lean

POSITIONS, TILE = 11, 4


@pytest.fixture(autouse=True)
def small_tiles(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lean_adapters, "TILE", TILE)


def adapted(
    dtype: torch.dtype = torch.float32, reentrant: bool = False, checkpointing: bool = True, **more: Any
) -> Any:
    """Two layers with LoRA whose second matrix is not zero."""
    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "vocab_size": 50}
    base = Qwen2ForCausalLM(Qwen2Config(**sizes, num_attention_heads=2, num_key_value_heads=1)).to(dtype)
    model = get_peft_model(base, LoraConfig(r=4, target_modules="all-linear", **more))
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            nn.init.normal_(parameter, std=0.1)
    if checkpointing:
        model.enable_input_require_grads()
        model.gradient_checkpointing_enable({"use_reentrant": reentrant})
    return model.train()


def gradients(model: Any, autocast: bool = False, within: Any = None) -> dict[str, torch.Tensor]:
    """The loss and the gradients of a step."""
    torch.manual_seed(1)
    ids = torch.randint(50, (2, POSITIONS))
    model.zero_grad()
    with within or nullcontext():
        with torch.autocast("cpu", torch.bfloat16, autocast):
            loss = model(input_ids=ids, labels=ids).loss
        loss.backward()
    return {"loss": loss.detach()} | {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}


@contextmanager
def counted(model: Any, calls: list[int]) -> Iterator[None]:
    """The positions of each call of an MLP's first layer."""
    layers = [module for name, module in model.named_modules() if name.endswith("mlp.gate_proj")]
    hooks = [m.register_forward_pre_hook(lambda m, given: calls.append(given[0].shape[1])) for m in layers]
    yield
    for hook in hooks:
        hook.remove()


@pytest.mark.parametrize("reentrant", [False, True])
def test_gradients_are_those_of_whole_layers(reentrant: bool) -> None:
    model = adapted(reentrant=reentrant)
    plain = gradients(model)
    tiled = gradients(model, within=lean(model, autocast=False))
    assert plain.keys() == tiled.keys() and len(plain) == 29
    for name, value in plain.items():
        torch.testing.assert_close(tiled[name], value, msg=name)


def test_an_mlp_runs_no_more_often() -> None:
    model, whole, in_tiles = adapted(), [], []
    with counted(model, whole):
        gradients(model)
    with counted(model, in_tiles), lean(model, autocast=False):
        gradients(model)
    assert whole == 4 * [POSITIONS]  # two layers, each of them again
    assert sorted(in_tiles) == 4 * [2] + 4 * 5 * [TILE]


def test_dropout_is_the_same_when_it_runs_again() -> None:
    model = adapted(lora_dropout=0.5)
    mlp = model.get_base_model().model.layers[0].mlp
    x = torch.randn(2, POSITIONS, 16, requires_grad=True)
    found = []
    for run in (lean_adapters._in_tiles, lambda mlp, forward, x: lean_adapters._joined(forward, x)):
        model.zero_grad()
        torch.manual_seed(3)
        y = run(mlp, mlp.forward, x)
        torch.rand(5)  # moves the generator on
        of_x = torch.autograd.grad((y**2).sum(), [x, *(p for p in mlp.parameters() if p.requires_grad)])
        found.append([y, *of_x])
    for tiled, joined in zip(*found, strict=True):
        torch.testing.assert_close(tiled, joined)
    assert (found[0][0] != mlp(x)).any()  # there was dropout


def test_bits_under_autocast_are_those_of_inputs_in_float32() -> None:
    """Autocast makes bfloat16 of PEFT's copies again."""
    model = adapted(torch.bfloat16, checkpointing=False)
    layer = model.get_base_model().model.layers[0].mlp.down_proj.lora_A["default"]
    plain, seen = gradients(model, autocast=True), []
    layer.register_forward_pre_hook(lambda m, given: seen.append(given[0].dtype))
    without = gradients(model, autocast=True, within=lean(model, autocast=True))
    assert layer.weight.dtype == torch.float32 and seen == [torch.bfloat16]
    assert all(torch.equal(without[name], value) for name, value in plain.items())


def test_dora_keeps_its_float32() -> None:
    model = adapted(torch.bfloat16, checkpointing=False, use_dora=True)
    plain = gradients(model, autocast=True)
    without = gradients(model, autocast=True, within=lean(model, autocast=True))
    assert all(torch.equal(without[name], value) for name, value in plain.items())


def test_all_is_as_before_behind_it() -> None:
    model = adapted()
    with lean(model, autocast=True):
        pass
    mlp = model.get_base_model().model.layers[0].mlp
    assert "forward" not in vars(mlp) and mlp.down_proj.cast_input_dtype_enabled
