"""Weights on the host, forwards elsewhere: the same bits, each weight across the bus once, two layers at a time."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
import torch
from fake_cuda import fake_cuda, move, on_fake_cuda, tables_of_values
from named_weights import same, weights_of
from torch import nn
from torch.utils._python_dispatch import _disable_current_modes

from llava.mezo import MeZO, MeZOConfig, passes
from llava.mezo.head import next_token_loss
from llava.mezo.journal.files import Journal
from llava.mezo.journal.fingerprint import fingerprint
from llava.mezo.journal.replay import Replay
from llava.mezo.kernels.interface import ALIGNMENT
from llava.mezo.offloading.optimizer import OffloadedMeZO

WIDTH, WORDS, LAYERS = 24, 90, 4
HOST = torch.device("cpu")


class Layer(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(WIDTH)
        self.up, self.down = nn.Linear(WIDTH, 3 * WIDTH), nn.Linear(3 * WIDTH, WIDTH)

    def forward(self, states: torch.Tensor) -> torch.Tensor:
        return states + self.down(torch.relu(self.up(self.norm(states))))


class Model(nn.Module):
    """What models have: tables, layers, a head, a buffer, and parameters outside of all of these."""

    def __init__(self, tied: bool = False) -> None:
        super().__init__()
        self.words = nn.Embedding(WORDS, WIDTH)
        self.bridge = nn.Linear(WIDTH, WIDTH)
        self.layers = nn.ModuleList(Layer() for _ in range(LAYERS))
        self.norm = nn.LayerNorm(WIDTH)
        self.head = nn.Linear(WIDTH, WORDS, bias=False)
        self.token, self.gain = nn.Parameter(torch.randn(WIDTH)), nn.Parameter(torch.tensor(0.5))
        self.register_buffer("shift", torch.randn(WIDTH))
        if tied:
            self.head.weight = self.words.weight

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        states = self.bridge(self.words(ids) + self.shift + self.token) * self.gain
        assert next(self.parameters()).device == states.device
        for layer in self.layers:
            states = layer(states)
        return next_token_loss(self.norm(states), self.head.weight, ids)


def built(dtype: torch.dtype = torch.bfloat16, tied: bool = False, frozen: tuple[str, ...] = ()) -> Model:
    torch.manual_seed(0)
    model = Model(tied).to(dtype)
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(not any(part in name for part in frozen))
    return model


def optimizer_of(model: nn.Module, offloaded: bool, device: torch.device = HOST, **settings: Any) -> MeZO:
    groups = [{"params": [p for p in model.parameters() if p.requires_grad], "lr": 1e-2, "weight_decay": 0.1}]
    given = groups, model, MeZOConfig(**settings)
    return OffloadedMeZO(*given, device=device) if offloaded else MeZO(*given)


def batch(step: int, length: int = 9) -> torch.Tensor:
    return torch.randint(0, WORDS, (2, length), generator=torch.Generator().manual_seed(step))


def train(optimizer: MeZO, model: nn.Module, steps: range) -> list[float]:
    losses = []
    for step in steps:
        apart = optimizer.config.estimator == "per_example"
        for ids in batch(step).split(1) if apart else [batch(step)]:
            losses.append(optimizer.accumulate(step, lambda ids=ids: model(ids)))
        optimizer.step()
    return losses


SETTINGS: dict[str, dict[str, Any]] = {
    "sgd": {},
    "fixed16": {"storage": "fixed16"},
    "fp32": {"storage": "fp32", "noise": "rademacher"},
    "momentum": {"rule": "momentum", "window": 3},
    "two directions": {"num_directions": 2},
    "svrg": {"estimator": "svrg", "anchor_steps": 2},
    "lowrank": {"estimator": "lowrank", "kernel": "torch"},
    "guided": {"estimator": "guided", "num_directions": 3},
    "per example": {"estimator": "per_example", "num_directions": 2},
}


@pytest.mark.parametrize("frozen", [(), ("layers",), ("up", "words", "head", "bridge")], ids=["all", "ends", "some"])
@pytest.mark.parametrize("settings", SETTINGS)
def test_bits_are_those_of_a_run_without(settings: str, frozen: tuple[str, ...]) -> None:
    decay = 0.0 if settings == "svrg" else 0.1
    results = []
    for offloaded in (False, True):
        model = built(frozen=frozen, tied=not frozen)
        optimizer = optimizer_of(model, offloaded, **SETTINGS[settings])
        optimizer.param_groups[0]["weight_decay"] = decay
        losses = train(optimizer, model, range(5))
        optimizer.release()
        results.append((losses, weights_of(model)))
    assert results[0][0] == results[1][0]
    assert same(results[0][1], results[1][1])
    assert not same(results[0][1], weights_of(built(frozen=frozen, tied=not frozen)))


def test_without_greenlet_forwards_run_one_after_the_other(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(passes, "side_by_side", lambda: False)
    model, twin = built(), built()
    losses = train(optimizer_of(twin, False), twin, range(3))
    optimizer = optimizer_of(model, True)
    assert train(optimizer, model, range(3)) == losses
    optimizer.flush()
    assert same(weights_of(model), weights_of(twin))


def crossing(optimizer: MeZO, model: nn.Module) -> tuple[int, int]:
    """Bytes up and down of a step, once the order of the layers is known."""
    train(optimizer, model, range(2))
    bus = optimizer.weights.bus  # type: ignore[attr-defined]
    before = bus.up_bytes, bus.down_bytes
    train(optimizer, model, range(2, 3))
    return bus.up_bytes - before[0], bus.down_bytes - before[1]


def test_a_weight_crosses_once_in_either_direction() -> None:
    model = built()
    up, down = crossing(optimizer_of(model, True), model)
    trained = sum(p.numel() * p.element_size() for p in model.parameters())
    looked_up = 2 * batch(0).numel() * WIDTH * 2  # rows of the table for both forwards, made on the host
    assert down == trained
    assert up == trained + looked_up


@pytest.mark.parametrize("frozen", [("layers",), ("up", "bridge")])
def test_what_is_frozen_comes_and_does_not_go_back(frozen: tuple[str, ...]) -> None:
    model = built(frozen=frozen)
    up, down = crossing(optimizer_of(model, True), model)
    assert down == sum(p.numel() * p.element_size() for p in model.parameters() if p.requires_grad)
    assert up == sum(p.numel() * p.element_size() for p in model.parameters()) + 2 * batch(0).numel() * WIDTH * 2


def test_two_layers_are_there_at_a_time_and_copies_of_one_matrix() -> None:
    model = built()
    optimizer = optimizer_of(model, True)
    made: list[int] = []
    original = optimizer.weights._memory

    def noted(part: Any, *rest: Any) -> Any:
        made.append(part.size)
        return original(part, *rest)

    with mock.patch.object(optimizer.weights, "_memory", noted):
        train(optimizer, model, range(3))
    layer = max(block.size(optimizer.weights.storages) for block in optimizer.weights.blocks.values())  # type: ignore[attr-defined]
    assert optimizer.weights.slots.bytes == 2 * layer  # type: ignore[attr-defined]
    assert layer > sum(p.numel() * p.element_size() for p in model.layers[0].parameters())
    assert max(made) <= max(p.numel() * p.element_size() for p in model.parameters()) + ALIGNMENT


def test_layers_are_filled_one_ahead() -> None:
    model = built()
    optimizer = optimizer_of(model, True)
    events: list[str] = []
    blocks = list(optimizer.weights.blocks.values())  # type: ignore[attr-defined]
    names = {id(block): str(number) for number, block in enumerate(blocks)}
    load, enter = optimizer.weights._load, optimizer.weights.enter  # type: ignore[attr-defined]
    train(optimizer, model, range(2))

    def loaded(slot: Any, cargo: Any) -> None:
        events.append("up " + names.get(id(cargo), "other"))
        load(slot, cargo)

    def entered(block: Any) -> None:
        events.append("run " + names[id(block)])
        enter(block)

    with (
        mock.patch.object(optimizer.weights, "enter", entered),
        mock.patch.object(optimizer.weights.slots, "_load", loaded),  # type: ignore[attr-defined]
    ):
        train(optimizer, model, range(2, 3))
    first_runs = {number: events.index(f"run {number}") for number in range(LAYERS)}
    for number in range(1, LAYERS):
        assert events.count(f"up {number}") == 1
        assert events.index(f"up {number}") == first_runs[number - 1] + 1


def test_what_came_up_before_the_host_changed_it_comes_again() -> None:
    model, twin = built(), built()
    optimizer, plain = optimizer_of(model, True), optimizer_of(twin, False)
    for step in range(4):
        assert train(optimizer, model, range(step, step + 1)) == train(plain, twin, range(step, step + 1))
        with optimizer.exported():
            assert same(weights_of(model), weights_of(twin))


@pytest.mark.parametrize("storage", ["native", "fixed16"])
def test_a_run_goes_on_and_is_replayed(storage: str, tmp_path: Path) -> None:
    whole = built()
    plain = optimizer_of(whole, False, storage=storage)
    train(plain, whole, range(6))
    plain.release()

    model = built()
    base = fingerprint({name: p.detach() for name, p in sorted(model.named_parameters())})
    optimizer = optimizer_of(model, True, storage=storage)
    optimizer.journal = Journal.open(tmp_path, optimizer.journal_header("a model", base))
    train(optimizer, model, range(4))
    state = copy.deepcopy(optimizer.state_dict())
    with optimizer.exported():
        saved = weights_of(model)
    optimizer.journal.close()

    resumed = built()
    for name, parameter in resumed.named_parameters():
        parameter.data.copy_(saved[name])
    second = optimizer_of(resumed, True, storage=storage)
    second.load_state_dict(state)
    train(second, resumed, range(4, 6))
    second.release()
    assert same(weights_of(resumed), weights_of(whole))

    again = built()
    third = optimizer_of(again, True, storage=storage)
    third.journal = Journal.open(tmp_path, third.journal_header("a model", base))
    third.catch_up(0, 4)
    train(third, again, range(4, 6))
    third.release()
    third.journal.close()
    assert same(weights_of(again), weights_of(whole))
    start = dict(built().named_parameters())
    replay = Replay(Journal.read(tmp_path), lambda name: start[name].detach().clone())
    replay.advance(6)
    assert all(torch.equal(replay.weight(name), value) for name, value in weights_of(whole).items())


@pytest.mark.parametrize("storage", ["native", "fixed16"])
def test_an_earlier_state_is_taken_up_again(storage: str) -> None:
    model = built()
    optimizer = optimizer_of(model, True, storage=storage)
    train(optimizer, model, range(2))
    state = copy.deepcopy(optimizer.state_dict())
    before = weights_of(model)
    expected = train(optimizer, model, range(2, 5))
    optimizer.load_state_dict(state)
    if storage == "native":
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                parameter.copy_(before[name])
    assert train(optimizer, model, range(2, 5)) == expected


def test_weights_that_no_forward_reads_are_updated_all_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("llava.mezo.offloading.weights.MOST_KEPT", 2)
    model, twin = built(), built()
    for one in (model, twin):
        one.unused = nn.ModuleList([nn.Linear(3, 3).to(torch.bfloat16)])  # type: ignore[assignment]
    twin.unused.load_state_dict(model.unused.state_dict())
    optimizer, plain = optimizer_of(model, True), optimizer_of(twin, False)
    assert train(optimizer, model, range(5)) == train(plain, twin, range(5))
    optimizer.flush()
    assert same(weights_of(model), weights_of(twin))


@pytest.mark.parametrize("storage", ["native", "fixed16"])
def test_the_model_runs_with_its_weights_as_they_are(storage: str) -> None:
    model, twin = built(), built()
    optimizer, plain = (optimizer_of(one, one is model, storage=storage) for one in (model, twin))
    train(optimizer, model, range(2))
    train(plain, twin, range(2))
    with torch.no_grad(), optimizer.current_weights(), plain.current_weights():
        assert torch.equal(model(batch(7)), twin(batch(7)))
        assert model.layers[0].up.weight.shape == (3 * WIDTH, WIDTH)
    assert train(optimizer, model, range(2, 4)) == train(plain, twin, range(2, 4))
    optimizer.release()
    plain.release()
    with torch.no_grad(), optimizer.current_weights():
        assert torch.equal(model(batch(7)), twin(batch(7)))


def test_slices_of_a_head_may_change_from_batch_to_batch(monkeypatch: pytest.MonkeyPatch) -> None:
    results = []
    for offloaded in (False, True):
        model = built()
        optimizer, losses = optimizer_of(model, offloaded), []
        for step, rows in enumerate((7, 7, 16, 16, 90, 7)):
            monkeypatch.setattr("llava.mezo.head.chunk_rows", lambda head, positions, rows=rows: rows)
            losses += train(optimizer, model, range(step, step + 1))
        optimizer.release()
        results.append((losses, weights_of(model)))
    assert results[0][0] == results[1][0]
    assert same(results[0][1], results[1][1])


def test_a_forward_that_fails_leaves_everything_as_it_was() -> None:
    model, twin = built(), built()
    optimizer, plain = optimizer_of(model, True), optimizer_of(twin, False)
    train(optimizer, model, range(2))
    train(plain, twin, range(2))

    def failing() -> torch.Tensor:
        model.layers[0](model.layers[1](torch.zeros(1, WIDTH, dtype=torch.bfloat16)))
        raise KeyError

    with pytest.raises(KeyError):
        optimizer.accumulate(2, failing)
    assert type(model._parameters) is type(nn.Module()._parameters)
    assert not optimizer.weights.slots.in_use()  # type: ignore[attr-defined]
    assert train(optimizer, model, range(2, 4)) == train(plain, twin, range(2, 4))
    optimizer.flush()
    assert same(weights_of(model), weights_of(twin))


def test_weights_of_a_layer_that_does_not_run() -> None:
    """A model that uses a layer's matrix without calling the layer."""

    class Reads(Model):
        def forward(self, ids: torch.Tensor) -> torch.Tensor:
            first = self.layers[0].up.weight
            return super().forward(ids) + torch.nn.functional.linear(self.token, first).sum() * 1e-3

    results = []
    for offloaded in (False, True):
        torch.manual_seed(0)
        model = Reads().to(torch.bfloat16)
        optimizer = optimizer_of(model, offloaded)
        losses = train(optimizer, model, range(3))
        optimizer.release()
        results.append((losses, weights_of(model)))
    assert results[0][0] == results[1][0]
    assert same(results[0][1], results[1][1])


@pytest.mark.filterwarnings("ignore:Accessing the data pointer of FakeTensor")
@pytest.mark.slow
@pytest.mark.parametrize("frozen", [("layers", "head"), ("up", "words")])
def test_nothing_is_computed_on_the_host_that_belongs_to_the_device(frozen: tuple[str, ...]) -> None:
    """On two devices, one of them fake: an operation on tensors of both would raise, and the numbers are the same."""
    twin, model = built(torch.float32, frozen=frozen), built(torch.float32, frozen=frozen)
    del twin.layers[2:], model.layers[2:]
    expected = train(optimizer_of(twin, False, kernel="torch"), twin, range(2))
    with tables_of_values(), fake_cuda():
        move(model, "cpu")
        optimizer = optimizer_of(model, True, torch.device("cuda"), kernel="torch")
        losses = []
        for step in range(2):
            with _disable_current_modes():
                ids = batch(step)
            there = on_fake_cuda(ids)
            losses.append(optimizer.accumulate(step, lambda there=there: model(there)))
            optimizer.step()
        optimizer.flush()
        assert {p.device.type for p in model.parameters()} == {"cpu"}
    found = {name: p.value for name, p in model.named_parameters()}  # type: ignore[attr-defined]
    assert losses == expected
    assert same(found, weights_of(twin))


def test_weights_start_on_the_host() -> None:
    model = built().to("meta")
    with pytest.raises(ValueError, match=r"start on the host; move the model there"):
        optimizer_of(model, True)
