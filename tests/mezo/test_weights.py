"""Weights stored outside the model: what the model sees, what is exact, and how they come back."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional

from llava.mezo import MeZO, MeZOConfig
from llava.mezo.kernels.interface import LARGEST_ON_GRID
from llava.mezo.reference import mezo_step
from llava.mezo.trained import TrainedWeights
from llava.mezo.updates import Update
from llava.mezo.weights import HEADROOM, Fixed16Storage, Float32Storage, NativeStorage, grid_steps, store

SIXTEEN = (torch.bfloat16, torch.float16)
X = torch.randn(16, 6, generator=torch.Generator().manual_seed(0))
Y = torch.randn(16, 3, generator=torch.Generator().manual_seed(1))


def make_model(dtype: torch.dtype = torch.bfloat16) -> nn.Sequential:
    torch.manual_seed(2)
    return nn.Sequential(nn.Linear(6, 40), nn.Tanh(), nn.LayerNorm(40), nn.Linear(40, 3)).to(dtype)


def loss_of(model: nn.Module) -> torch.Tensor:
    return functional.mse_loss(model(X.to(model[0].weight.dtype)).float(), Y)


def optimizer_of(model: nn.Module, storage: str, lr: float = 1e-3) -> MeZO:
    return MeZO(model.parameters(), model, MeZOConfig(eps=1e-2, storage=storage), lr=lr)


def steps(optimizer: MeZO, model: nn.Module, numbers: range) -> MeZO:
    for step in numbers:
        optimizer.accumulate(step, lambda: loss_of(model))
        optimizer.step()
    return optimizer


def values(optimizer: MeZO) -> list[torch.Tensor]:
    """The exact values, in order of the names."""
    return [storage.value.clone() for storage in optimizer.storages.values()]  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("dtype", "dims", "storage", "expected"),
    [
        (torch.float32, 2, "fixed16", NativeStorage),
        (torch.float32, 2, "fp32", NativeStorage),
        (torch.bfloat16, 2, "native", NativeStorage),
        (torch.bfloat16, 2, "fp32", Float32Storage),
        (torch.float16, 2, "fixed16", Fixed16Storage),
        (torch.bfloat16, 4, "fixed16", Fixed16Storage),
        (torch.bfloat16, 1, "fixed16", Float32Storage),
    ],
)
def test_which_storage_a_weight_gets(dtype: torch.dtype, dims: int, storage: str, expected: type) -> None:
    parameter = nn.Parameter(torch.ones([3] * dims, dtype=dtype))
    assert type(store(parameter, storage)) is expected


@pytest.mark.parametrize("dtype", SIXTEEN)
@pytest.mark.parametrize("storage", ["fixed16", "fp32"])
def test_stored_values_do_not_drift(storage: str, dtype: torch.dtype) -> None:
    model = make_model(dtype)
    optimizer = optimizer_of(model, storage, lr=0.0)
    before = values(optimizer)
    steps(optimizer, model, range(50))
    assert optimizer.last is not None and optimizer.last.projected_grad != 0
    assert all(map(torch.equal, before, values(optimizer)))


@pytest.mark.parametrize("dtype", SIXTEEN)
def test_float32_storage_equals_the_reference_in_float32_with_a_forward_in_16_bits(dtype: torch.dtype) -> None:
    model, twin = make_model(dtype).eval(), make_model(dtype).eval()
    optimizer = optimizer_of(model, "fp32")
    weights = {name: p.detach().float() for name, p in twin.named_parameters()}

    def twin_loss(perturbed: dict[str, torch.Tensor]) -> float:
        with torch.no_grad():
            rounded = {name: value.to(dtype) for name, value in perturbed.items()}
            return float(torch.func.functional_call(twin, rounded, X.to(dtype)).float().sub(Y).square().mean())

    for step in range(5):
        steps(optimizer, model, range(step, step + 1))
        weights, _ = mezo_step(weights, twin_loss, step, optimizer.config, 1e-3, {})
    assert all(map(torch.equal, values(optimizer), (weights[name] for name in optimizer.names)))


def test_a_grid_reaches_beyond_the_largest_weight_and_is_finer_than_bfloat16_there() -> None:
    rows = torch.randn(50, 300, generator=torch.Generator().manual_seed(0)) * torch.logspace(-4, 2, 50)[:, None]
    step, largest = grid_steps(rows), rows.abs().amax(dim=1)
    small = largest < largest.max() / 256
    assert (step * LARGEST_ON_GRID >= HEADROOM * largest).all()
    assert (step * LARGEST_ON_GRID <= 2 * HEADROOM * largest)[~small].all()
    assert (step[small] == step[small][0]).all()
    spacing = torch.exp2(torch.floor(torch.log2(largest)) - 7)
    assert (spacing / step >= 16)[~small].all()
    assert torch.equal(step.log2(), step.log2().round())
    assert grid_steps(torch.zeros(2, 3)).tolist() == [2.0**-14] * 2


@pytest.mark.parametrize("dtype", SIXTEEN)
def test_a_grid_gives_back_all_but_the_smallest_weights(dtype: torch.dtype) -> None:
    weight = torch.randn(64, 200, generator=torch.Generator().manual_seed(0)).to(dtype)
    stored = Fixed16Storage(nn.Parameter(weight.clone()))
    back, step = stored.exported(), grid_steps(weight)[:, None]
    assert (back.float() - weight.float()).abs().le(step / 2).all()
    precision = {torch.bfloat16: 8, torch.float16: 11}[dtype]
    large = weight.float().abs() >= 2**precision * step
    assert torch.equal(back[large], weight[large]) and (dtype != torch.bfloat16 or large.float().mean() > 0.9)


@pytest.mark.parametrize("storage", ["native", "fixed16", "fp32"])
def test_a_parameter_reads_nan_unless_it_is_native(storage: str) -> None:
    model = make_model()
    optimizer = optimizer_of(model, storage)
    kinds = {bool(p.isnan().all()) for p in model.parameters()}
    assert kinds == {storage != "native"}
    assert all(p.untyped_storage().nbytes() == 2 for p in model.parameters()) is (storage != "native")
    with torch.no_grad(), optimizer.current_weights():
        assert loss_of(model).isfinite()
    assert all(p.dtype == torch.bfloat16 for p in model.parameters())


@pytest.mark.parametrize("storage", ["native", "fixed16", "fp32"])
def test_current_exported_and_released_weights_agree(storage: str) -> None:
    model = make_model()
    optimizer = steps(optimizer_of(model, storage), model, range(5))
    plain = make_model()
    with torch.no_grad():
        with optimizer.current_weights():
            current = loss_of(model)
        with optimizer.exported():
            plain.load_state_dict(copy.deepcopy(model.state_dict()))
        optimizer.release()
        assert float(current) == float(loss_of(plain)) == float(loss_of(model))
    assert all(map(torch.equal, plain.parameters(), model.parameters()))
    if storage != "native":
        with pytest.raises(RuntimeError, match="released"):
            optimizer.accumulate(5, lambda: loss_of(model))


@pytest.mark.parametrize("storage", ["native", "fixed16", "fp32"])
def test_a_run_that_was_stopped_and_resumed_is_the_same_run(storage: str) -> None:
    through_model = make_model()
    through = steps(optimizer_of(through_model, storage), through_model, range(12))
    first_model = make_model()
    first = steps(optimizer_of(first_model, storage), first_model, range(5))
    saved: dict[str, Any] = copy.deepcopy(first.state_dict())
    second_model = make_model()
    with first.exported():
        second_model.load_state_dict(first_model.state_dict())
    second = optimizer_of(second_model, storage)
    second.load_state_dict(saved)
    steps(second, second_model, range(5, 12))
    assert all(map(torch.equal, values(through), values(second)))


def test_a_state_of_another_storage_is_refused() -> None:
    model, other = make_model(), make_model()
    saved = optimizer_of(model, "fixed16").state_dict()
    with pytest.raises(ValueError, match=r"saved state of a weight is .*int16.*stores it as .*float32"):
        optimizer_of(other, "fp32").load_state_dict(saved)
    saved["storage"]["9.weight"] = {}
    with pytest.raises(ValueError, match=r"'9\.weight', which is not trained now"):
        optimizer_of(make_model(), "fixed16").load_state_dict(saved)


def test_weights_at_the_end_of_their_grid_are_counted() -> None:
    parameter = nn.Parameter(torch.full((2, 50), 0.5, dtype=torch.bfloat16))
    stored = Fixed16Storage(parameter)
    assert stored.at_the_limit() == 0
    TrainedWeights([stored], "rademacher", "torch").update([Update((1,), ((10.0,),), (1.0,))])
    assert stored.at_the_limit() == 100
