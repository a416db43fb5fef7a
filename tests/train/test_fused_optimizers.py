"""LOMO and AdaLomo step as their authors' package does, in the backward pass, and keep what a run goes on with."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import nn

from llava.train.parts import fused_optimizers
from llava.train.parts.fused_optimizers import FUSED, AdaLomo, Lomo

STEPS = 4


def network(dtype: torch.dtype) -> nn.Module:
    torch.manual_seed(0)
    layers = nn.Sequential(nn.Embedding(50, 16), nn.Linear(16, 32), nn.Tanh(), nn.Linear(32, 50)).to(dtype)
    layers[3].weight = nn.Parameter(layers[3].weight[:, :16].detach().clone())
    layers[3].weight = layers[0].weight  # as a tied head: a gradient of two places
    layers.insert(3, nn.Linear(32, 16).to(dtype))
    layers[1].bias.requires_grad_(False)
    return layers


def loss(model: nn.Module, step: int) -> torch.Tensor:
    ids = torch.randint(0, 50, (6,), generator=torch.Generator().manual_seed(step))
    return nn.functional.cross_entropy(model(ids).float(), ids.flip(0))


def trained(model: nn.Module, optimizer: Any) -> dict[str, torch.Tensor]:
    for step in range(STEPS):
        loss(model, step).backward()
        assert all(p.grad is None for p in model.parameters() if p.requires_grad)
        optimizer.step()
    return {name: p.detach().clone() for name, p in model.named_parameters()}


def of_package(kind: str, model: nn.Module, monkeypatch: pytest.MonkeyPatch, **options: float) -> dict[str, Any]:
    package = pytest.importorskip("lomo_optim")
    monkeypatch.setattr(torch.Tensor, "cuda", lambda self: self)  # which its AdaLomo calls
    optimizer = getattr(package, kind)(model, **options)
    for step in range(STEPS):
        optimizer.fused_backward(loss(model, step), options["lr"])
    return {name: p.detach().clone() for name, p in model.named_parameters()}


def groups(model: nn.Module) -> list[dict[str, Any]]:
    return [{"params": list(model.parameters())}]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("more", [{}, {"weight_decay": 0.1}, {"clip_grad_value": 0.01}])
def test_lomo_has_the_bits_of_the_package(
    dtype: torch.dtype, more: dict[str, float], monkeypatch: pytest.MonkeyPatch
) -> None:
    """In bfloat16 but for the rounding, which is to nearest there."""
    monkeypatch.setattr(fused_optimizers, "_rounded", lambda values, draws: values)
    ours, theirs = network(dtype), network(dtype)
    start = {name: p.detach().clone() for name, p in ours.named_parameters()}
    found = trained(ours, Lomo(groups(ours), lr=0.5, **more))
    expected = of_package("Lomo", theirs, monkeypatch, lr=0.5, **more)
    assert all(torch.equal(found[name], expected[name]) for name in expected)
    changed = {name for name in start if not torch.equal(start[name], found[name])}
    assert changed == start.keys() - {"1.bias"}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("more", [{}, {"weight_decay": 0.1, "clip_threshold": 0.3, "decay_rate": -0.5}])
def test_adalomo_steps_as_the_package_does(
    dtype: torch.dtype, more: dict[str, float], monkeypatch: pytest.MonkeyPatch
) -> None:
    """In bfloat16 but for the rounding, which is to nearest there."""
    monkeypatch.setattr(fused_optimizers, "_rounded", lambda values, draws: values)
    ours, theirs, start = network(dtype), network(dtype), network(dtype).state_dict()
    found = trained(ours, AdaLomo(groups(ours), lr=0.1, **more))
    expected = of_package("AdaLomo", theirs, monkeypatch, lr=0.1, **more)
    spacing = 2e-6 if dtype == torch.float32 else 1e-2
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value, atol=spacing, rtol=spacing)
        if name != "1.bias":
            assert (value - start[name]).abs().float().mean() > 1e-3, name


@pytest.mark.parametrize("kind", FUSED)
def test_a_few_rows_at_a_time_are_the_whole(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    whole, parts = network(torch.float32), network(torch.float32)
    found = trained(whole, FUSED[kind](groups(whole), lr=0.1))
    monkeypatch.setattr(fused_optimizers, "SLICE", 40)
    for name, value in trained(parts, FUSED[kind](groups(parts), lr=0.1)).items():
        torch.testing.assert_close(value, found[name], atol=1e-6, rtol=1e-6)


@pytest.mark.parametrize("kind", FUSED)
@pytest.mark.parametrize("shape", [(), (5,), (1, 1), (4, 3, 2, 2)])
def test_weights_of_any_shape(kind: str, shape: tuple[int, ...]) -> None:
    torch.manual_seed(0)
    weight = nn.Parameter(torch.randn(shape))
    before = weight.detach().clone()
    optimizer = FUSED[kind]([{"params": [weight]}], lr=0.1)
    weight.square().sum().backward()
    if kind == "lomo":
        assert torch.equal(weight, before - 0.1 * (2 * before))
    else:  # the first step of factored moments is of the size of the rate, against the gradient
        assert ((weight - before).sign() == -before.sign()).all()
        size = (weight - before).square().mean().sqrt() / before.square().mean().sqrt()
        assert 0.08 < float(size.detach()) <= 0.1001
    assert weight.grad is None and optimizer.state_dict()["param_groups"][0]["lr"] == 0.1


def test_rates_of_groups_hold_also_after_a_schedule_has_changed_them() -> None:
    model = nn.Sequential(nn.Linear(3, 3, bias=False), nn.Linear(3, 3, bias=False))
    optimizer = Lomo([{"params": model[0].parameters()}, {"params": model[1].parameters(), "lr": 0.0}], lr=1.0)
    before = copy.deepcopy(model)
    model(torch.ones(1, 3)).sum().backward()
    assert torch.equal(model[1].weight, before[1].weight) and not torch.equal(model[0].weight, before[0].weight)
    optimizer.param_groups[0]["lr"] = 0.0
    kept = model[0].weight.detach().clone()
    model(torch.ones(1, 3)).sum().backward()
    assert torch.equal(model[0].weight, kept)


@pytest.mark.parametrize("kind", FUSED)
def test_a_state_is_loaded_as_it_was_saved(kind: str) -> None:
    """In float32 and not, as torch would, in the dtype of the weights; the run goes on as if unbroken."""
    first, second = network(torch.bfloat16), network(torch.bfloat16)
    unbroken, resumed = FUSED[kind](groups(first), lr=0.1), FUSED[kind](groups(second), lr=0.1)
    trained(first, unbroken)
    second.load_state_dict(first.state_dict())
    resumed.load_state_dict(copy.deepcopy(unbroken.state_dict()))
    moments = [value for of_one in resumed.state.values() for value in of_one.values() if torch.is_tensor(value)]
    if kind == "adalomo":
        assert len(moments) > 5 and {m.dtype for m in moments} == {torch.float32}
    expected, found = trained(first, unbroken), trained(second, resumed)
    assert all(torch.equal(found[name], value) for name, value in expected.items())


def test_a_state_without_counts_is_loaded() -> None:
    """As LOMO saved it before bfloat16 weights were rounded by their numbers of steps."""
    model = network(torch.bfloat16)
    optimizer = Lomo(groups(model), lr=0.1)
    optimizer.load_state_dict(optimizer.state_dict() | {"state": {}})
    loss(model, 0).backward()
    assert {of_one["step"] for of_one in optimizer.state.values()} == {1}


@pytest.mark.parametrize("kind", FUSED)
def test_small_steps_of_bfloat16_weights_are_taken_on_average(kind: str) -> None:
    """A fortieth of the spacing, 2^-8 below 1: to nearest no weight would change, and ever so many steps add up."""
    weight, count = nn.Parameter(torch.ones(400, 500, dtype=torch.bfloat16)), 20
    optimizer = FUSED[kind]([{"params": [weight]}], lr=1e-4)
    weight.sum().backward()
    assert set(weight.unique().tolist()) == {1.0, 1 - 2**-8}
    # the deviation of the mean of 200,000 weights, one in forty of which moves, is 1.4e-6
    assert float((1 - weight.float()).mean().detach()) == pytest.approx(1e-4, abs=7e-6)
    for _ in range(count - 1):
        weight.sum().backward()
    assert float((1 - weight.float()).mean().detach()) == pytest.approx(count * 1e-4, abs=3.5e-5)
    assert optimizer.state[weight]["step"] == count


def test_rounding_has_no_bias_and_leaves_what_fits() -> None:
    kept = torch.tensor([0.0, -0.0, 1.0, -3.0, 2.0**-130, float("inf"), float("-inf"), float("nan")])
    found = fused_optimizers._rounded(kept.repeat(1000, 1), torch.Generator().manual_seed(0))
    assert found.dtype == torch.bfloat16
    assert torch.equal(found.view(torch.int16), kept.bfloat16().repeat(1000, 1).view(torch.int16))
    for share in (0.125, 0.5, 0.9):
        for low, high in ((1.0, 1 + 2**-7), (-2.0, -2 - 2**-6)):
            values = torch.full((100_000,), low + share * (high - low))
            found = fused_optimizers._rounded(values, torch.Generator().manual_seed(1))
            assert set(found.unique().tolist()) == {low, high}
            assert float((found == high).float().mean()) == pytest.approx(share, abs=0.008)


def test_not_a_number_of_any_bits_stays_one() -> None:
    """Patterns with all bits of the mantissa, which the random ones would carry over to the sign, or to 0."""
    patterns = torch.tensor([0x7FFFFFFF, -1, 0x7F800001, -0x7FFFFF], dtype=torch.int32).repeat(100)
    found = fused_optimizers._rounded(patterns.view(torch.float32), torch.Generator().manual_seed(0))
    assert bool(found.isnan().all())


def test_rounding_is_of_the_seed_the_weight_and_the_step() -> None:
    def steps(seed: int) -> list[torch.Tensor]:
        """Two weights, both after their first and their second step."""
        weights = [nn.Parameter(torch.ones(1000, dtype=torch.bfloat16)) for _ in range(2)]
        optimizer = Lomo([{"params": weights[:1]}, {"params": weights[1:]}], lr=2**-9, seed=seed)
        found = []
        for _ in range(2):
            before = [weight.detach().clone() for weight in weights]
            (weights[0].sum() + weights[1].sum()).backward()
            found += [weight.detach() - old for weight, old in zip(weights, before, strict=True)]
        assert len(optimizer.state) == 2
        return found

    first = steps(1)
    torch.rand(5)  # other draws of the run decide nothing
    assert all(torch.equal(one, other) for one, other in zip(first, steps(1), strict=True))
    assert not any(torch.equal(one, other) for one, other in zip(first, steps(2), strict=True))
    assert not any(torch.equal(first[a], first[b]) for a in range(4) for b in range(a))
