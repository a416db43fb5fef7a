"""The loss of a language model with gradients, a chunk of the vocabulary at a time."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.nn import functional
from torch.utils._pytree import tree_leaves

from llava.mezo import head
from llava.model.chunked_loss import has_plain_head, mean_cross_entropy

sys.path.insert(0, str(Path(__file__).parents[2] / "scripts" / "benchmark"))

from measuring import LiveStorages

POSITIONS, WIDTH, WORDS = 37, 64, 1003


@pytest.fixture
def given():
    generator = torch.Generator().manual_seed(0)
    states = torch.randn(POSITIONS, WIDTH, generator=generator)
    weight = torch.randn(WORDS, WIDTH, generator=generator) / 4
    return states, weight, torch.randint(WORDS, (POSITIONS,), generator=generator)


def plain(states, weight, targets):
    return functional.cross_entropy(functional.linear(states, weight).float(), targets)


def with_gradients(function, states, weight, targets, scale=1.0):
    states, weight = states.clone().requires_grad_(), weight.clone().requires_grad_()
    loss = function(states, weight, targets)
    (scale * loss).backward()
    return loss.detach(), states.grad, weight.grad


@pytest.mark.parametrize("chunk_bytes", [1, 8 * 2**20], ids=["chunks", "at once"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_it_is_the_plain_loss_with_its_gradients(given, dtype, chunk_bytes, monkeypatch):
    monkeypatch.setattr(head, "CHUNK_BYTES", chunk_bytes)
    states, weight, targets = given
    assert (head.chunk_rows(weight, POSITIONS) < WORDS) == (chunk_bytes == 1)
    found = with_gradients(mean_cross_entropy, states.to(dtype), weight.to(dtype), targets, scale=8.0)
    expected = with_gradients(plain, states.to(dtype), weight.to(dtype), targets, scale=8.0)
    tolerance = {"rtol": 1e-5, "atol": 1e-6} if dtype == torch.float32 else {"rtol": 2e-2, "atol": 2e-3}
    for ours, theirs in zip(found, expected, strict=True):
        assert ours.dtype == theirs.dtype
        torch.testing.assert_close(ours, theirs, **tolerance)
    assert found[1].abs().max() > 0.05


def test_autocast_is_that_of_a_linear_layer(given):
    with torch.autocast("cpu", torch.bfloat16):
        ours = with_gradients(mean_cross_entropy, *given)
        theirs = with_gradients(plain, *given)
    assert ours[0].dtype == ours[1].dtype == ours[2].dtype == torch.float32
    torch.testing.assert_close(ours, theirs, rtol=2e-2, atol=2e-3)
    assert not torch.allclose(ours[0], plain(*given), rtol=1e-7, atol=0)  # products were rounded


def test_a_frozen_head_has_no_gradient_and_states_have_theirs(given):
    states, weight, targets = given
    states = states.clone().requires_grad_()
    mean_cross_entropy(states, weight, targets).backward()
    torch.testing.assert_close(states.grad, with_gradients(plain, *given)[1])
    assert weight.grad is None


def test_gradients_have_gradients(given):
    """Of the size of the gradient, as a product with the Hessian needs."""
    found = []
    for function in (mean_cross_entropy, plain):
        states, weight = given[0].clone().requires_grad_(), given[1].clone().requires_grad_()
        first = torch.autograd.grad(function(states, weight, given[2]), (states, weight), create_graph=True)
        sum(one.square().sum() for one in first).backward()
        found.append((states.grad, weight.grad))
    torch.testing.assert_close(*found)
    assert found[0][0].abs().max() > 1e-3


def test_no_supervised_token_is_no_number(given):
    states, weight, targets = given
    loss = mean_cross_entropy(states[:0].requires_grad_(), weight, targets[:0])
    loss.backward()
    assert loss.isnan()


class Live(LiveStorages):
    """Of what is made within it."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(result):
            if isinstance(tensor, torch.Tensor):
                self.count(tensor)
        return result


def test_logits_are_never_there_as_a_whole():
    """Of 2,048 positions they would be 64 MiB in float32, and a backward pass over them holds several times that."""
    states, weight = torch.randn(2048, 32, requires_grad=True), torch.randn(8192, 32)
    targets = torch.randint(8192, (2048,))
    for function, holds in ((mean_cross_entropy, 24), (plain, 128)):
        with Live() as live:
            function(states, weight, targets).backward()
        assert (live.peak > holds * 2**20) == (function is plain)


def test_heads_that_do_something_else_are_told_apart():
    layer = nn.Linear(4, 8, bias=False)
    assert has_plain_head(layer)
    assert not has_plain_head(nn.Linear(4, 8)) and not has_plain_head(nn.Sequential(layer))
    hook = layer.register_forward_pre_hook(lambda module, args: None)
    assert not has_plain_head(layer)
    hook.remove()
    layer.weight.ds_id = 1  # a weight that DeepSpeed keeps in pieces
    assert not has_plain_head(layer)
