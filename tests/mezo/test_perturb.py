"""Perturbed passes: what is read where, what is kept and dropped, and that nothing stays behind."""

from __future__ import annotations

import gc
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional

from llava.mezo.kernels import Field, Update
from llava.mezo.noise import kernel_for
from llava.mezo.perturb import Perturbation
from llava.mezo.scratch import ScratchPool
from llava.mezo.tables import PerturbedTable
from llava.mezo.weights import NativeStorage, Storage

SEED, SCALE = 77, 0.05


def perturbation_of(model: nn.Module, *parameters: nn.Parameter) -> Perturbation:
    chosen = parameters or tuple(model.parameters())
    storages: dict[nn.Parameter, Storage] = {
        p: NativeStorage(p, Field(number, "gaussian"), "torch") for number, p in enumerate(chosen)
    }
    return Perturbation(model, storages)


def expected(perturbation: Perturbation, parameter: nn.Parameter) -> torch.Tensor:
    out = torch.empty(parameter.shape, dtype=parameter.dtype)
    storage = perturbation.storages[parameter]
    assert isinstance(storage, NativeStorage)
    kernel_for("reference", "cpu").perturb(parameter.detach().contiguous(), out, storage.field, SEED, SCALE)
    return out


class Probe(nn.Module):
    """Runs a function of itself as its forward."""

    def __init__(self, function: Any, **children: Any) -> None:
        super().__init__()
        self.function = function
        for name, child in children.items():
            setattr(self, name, child)

    def forward(self, *args: Any) -> Any:
        return self.function(self, *args)


def run(perturbation: Perturbation, *args: Any) -> Any:
    with perturbation.attached(), perturbation.at(SEED, SCALE):
        return perturbation.model(*args)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_every_way_of_reading_is_perturbed(dtype: torch.dtype) -> None:
    shared = nn.Linear(4, 4)
    model = Probe(
        lambda m, x: (
            functional.linear(m.layers["a"](m.layers["b"](x)), m.other.weight) + m.vector + m.listed[1],
            m.other.weight,
            m.vector,
            m.listed[1],
            m.layers["a"].weight,
        ),
        layers=nn.ModuleDict({"a": shared, "b": shared}),
        other=nn.Linear(4, 4, bias=False),
        vector=nn.Parameter(torch.randn(4)),
        listed=nn.ParameterList([torch.randn(4), torch.randn(4)]),
    ).to(dtype)
    perturbation = perturbation_of(model)
    x = torch.randn(3, 4, dtype=dtype)
    result, *read = run(perturbation, x)
    wanted = [expected(perturbation, p) for p in (model.other.weight, model.vector, model.listed[1], shared.weight)]
    for got, want in zip(read, wanted, strict=True):
        assert torch.equal(got, want)
    bias = expected(perturbation, shared.bias)
    twice = functional.linear(functional.linear(x, wanted[3], bias), wanted[3], bias)
    assert torch.equal(result, functional.linear(twice, wanted[0]) + wanted[1] + wanted[2])


def test_listing_gives_the_stored_parameters_and_assignments_reach_the_module() -> None:
    model = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3))
    stored = dict(model.named_parameters())
    perturbation = perturbation_of(model)
    replacement = nn.Parameter(torch.ones(3, 3))
    with perturbation.attached(), perturbation.at(SEED, SCALE):
        assert all(p is stored[name] for name, p in model.named_parameters())
        assert torch.equal(model.state_dict()["0.weight"], stored["0.weight"])
        model[1].weight = replacement
        assert model[1].weight is replacement
    assert model[1].weight is replacement and model[0].weight is stored["0.weight"]


def test_tied_parameters_get_one_noise_whoever_reads_them() -> None:
    embed, head = nn.Embedding(9, 4), nn.Linear(4, 9, bias=False)
    head.weight = embed.weight
    model = Probe(lambda m, ids: (m.embed(ids), m.head(torch.eye(4))), embed=embed, head=head)
    perturbation = perturbation_of(model)
    rows, logits = run(perturbation, torch.arange(9))
    want = expected(perturbation, embed.weight)
    assert torch.equal(rows, want) and torch.equal(logits, want.T)


class TestTables:
    """Embedding matrices."""

    def table(self, counted: list[int], height: int = 40, width: int = 6) -> tuple[Perturbation, nn.Embedding]:
        embedding = nn.Embedding(height, width)
        perturbation = perturbation_of(embedding)
        storage = perturbation.storages[embedding.weight]
        assert isinstance(storage, NativeStorage)
        original = storage.perturb

        def counting(out: torch.Tensor, *args: Any, **kwargs: Any) -> None:
            counted.append(out.shape[0])
            original(out, *args, **kwargs)

        storage.perturb = counting  # type: ignore[method-assign]
        return perturbation, embedding

    def test_only_rows_that_are_read_are_made(self) -> None:
        counted: list[int] = []
        perturbation, embedding = self.table(counted)
        ids = torch.tensor([[3, 39], [3, 0]], dtype=torch.int32)
        rows = run(perturbation, ids)
        assert counted == [] and type(rows) is torch.Tensor
        assert torch.equal(rows, expected(perturbation, embedding.weight)[ids.long()])

    def test_a_slice_makes_its_rows(self) -> None:
        counted: list[int] = []
        perturbation, embedding = self.table(counted)
        want = expected(perturbation, embedding.weight)
        with perturbation.attached(), perturbation.at(SEED, SCALE):
            table = embedding.weight
            assert isinstance(table, PerturbedTable) and (table.shape, table.dtype) == ((40, 6), torch.float32)
            assert len(table) == 40 and table.size(1) == 6 and table.device.type == "cpu" and counted == []
            assert torch.equal(table[5:9], want[5:9]) and torch.equal(table[-3:], want[-3:])
            assert table[9:2].shape == (0, 6)
            assert counted == [4, 3]

    def test_any_other_operation_gets_the_whole(self) -> None:
        counted: list[int] = []
        perturbation, embedding = self.table(counted)
        want = expected(perturbation, embedding.weight)
        with perturbation.attached(), perturbation.at(SEED, SCALE):
            table = embedding.weight
            assert torch.equal(table.t() @ torch.eye(40), want.T)
            assert torch.equal(torch.cat([table, table]), torch.cat([want, want]))
            assert torch.equal(table[::2], want[::2]) and torch.equal(table[7], want[7])
            assert torch.equal(embedding(torch.tensor([1, 2])), want[1:3])
            assert table.sum().item() == want.sum().item()
            assert counted == [40]

    def test_many_lookups_make_the_whole_once(self) -> None:
        counted: list[int] = []
        perturbation, embedding = self.table(counted)
        ids = torch.randint(0, 40, (100,))
        assert torch.equal(run(perturbation, ids), expected(perturbation, embedding.weight)[ids])
        assert counted == [40]

    def test_a_row_that_does_not_exist(self) -> None:
        perturbation, _ = self.table([])
        with pytest.raises(IndexError, match="40"):
            run(perturbation, torch.tensor([40]))


def test_copies_are_dropped_when_the_owner_returns() -> None:
    seen: list[int] = []

    def forward(m: Any, x: torch.Tensor) -> torch.Tensor:
        for layer in m.layers:
            x = layer(x)
            gc.collect()
            seen.append(sum(len(owner.parameters.shelf) for owner in perturbation._owners))
        return x

    model = Probe(forward, layers=nn.ModuleList(nn.Linear(4, 4) for _ in range(3)))
    perturbation = perturbation_of(model)
    run(perturbation, torch.ones(1, 4))
    assert seen == [0, 0, 0]


def test_an_output_that_is_the_weight_itself_stays_intact() -> None:
    big = 200  # large enough for pooled memory
    model = Probe(
        lambda m: (m.one(), m.two()),
        one=Probe(lambda m: m.w[:2], w=nn.Parameter(torch.randn(big, big))),
        two=Probe(lambda m: m.w[:2], w=nn.Parameter(torch.randn(big, big))),
    )
    perturbation = perturbation_of(model)
    one, two = run(perturbation)
    assert torch.equal(one, expected(perturbation, model.one.w)[:2])
    assert torch.equal(two, expected(perturbation, model.two.w)[:2])


def test_scratch_blocks_are_reused_once_free() -> None:
    pool, shape = ScratchPool(), torch.Size((200, 200))
    first = pool.empty(shape, torch.float32, torch.device("cpu"))
    view, address = first[3], first.data_ptr()
    del first
    assert pool.empty(shape, torch.float32, torch.device("cpu")).data_ptr() != address
    del view
    taken = [pool.empty(shape, torch.float32, torch.device("cpu")) for _ in range(3)]
    assert address in [t.data_ptr() for t in taken]
    assert len({t.data_ptr() for t in taken}) == 3


def test_flags_hooks_and_tables_come_back() -> None:
    model = nn.Sequential(nn.Linear(2, 2), nn.Dropout(0.9), nn.Linear(2, 2)).train()
    model[2].eval()
    tables, flags = [m._parameters for m in model.modules()], [m.training for m in model.modules()]
    perturbation = perturbation_of(model)
    with perturbation.attached():
        assert not any(m.training for m in model.modules()) and not torch.is_grad_enabled()
        assert model[0].weight is tables[1]["weight"]  # no point chosen yet
        with perturbation.at(SEED, SCALE):
            assert model[0].weight is not tables[1]["weight"]
        assert model[0].weight is tables[1]["weight"]
    assert [m.training for m in model.modules()] == flags and torch.is_grad_enabled()
    assert all(a is b for a, b in zip([m._parameters for m in model.modules()], tables, strict=True))
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())


def test_peft_adapters_are_perturbed_and_the_base_is_not() -> None:
    peft = pytest.importorskip("peft")
    base = nn.Sequential(nn.Linear(6, 6, bias=False), nn.Linear(6, 6, bias=False))
    model = peft.get_peft_model(base, peft.LoraConfig(r=2, target_modules=["0"], init_lora_weights=False)).eval()
    trained = [p for p in model.parameters() if p.requires_grad]
    perturbation = perturbation_of(model, *trained)
    x = torch.randn(3, 6)
    a, b = (expected(perturbation, p) for p in trained)
    inner = base[0]
    want = x @ inner.weight.T + (x @ a.T @ b.T) * inner.scaling["default"]
    assert torch.allclose(run(perturbation, x), base[1](want), atol=1e-6)


def test_non_contiguous_weights_are_numbered_in_logical_order() -> None:
    weight = nn.Parameter(torch.randn(5, 7).t())
    model = Probe(lambda m: m.w, w=weight)
    perturbation = perturbation_of(model)
    assert torch.equal(run(perturbation), expected(perturbation, weight))
    copy = nn.Parameter(weight.detach().contiguous().clone())
    perturbation.storages[weight].apply([Update((1,), (0.5,), 0.75)])
    NativeStorage(copy, Field(0, "gaussian"), "reference").apply([Update((1,), (0.5,), 0.75)])
    assert not weight.is_contiguous() and torch.equal(weight, copy)


def test_a_loss_that_reads_nothing_is_reported_once(caplog: pytest.LogCaptureFixture) -> None:
    perturbation = perturbation_of(nn.Linear(2, 2))
    for _ in range(2):
        with perturbation.attached(), perturbation.at(SEED, SCALE):
            pass
    assert [r.levelname for r in caplog.records] == ["WARNING"] and "read none" in caplog.text


class TestRefusals:
    def test_order_of_use(self) -> None:
        perturbation = perturbation_of(nn.Linear(2, 2))
        with pytest.raises(RuntimeError, match="inside `with"), perturbation.at(0, 1.0):
            pass
        with perturbation.attached():
            with pytest.raises(RuntimeError, match="attached already"), perturbation.attached():
                pass
            with (
                perturbation.at(0, 1.0),
                pytest.raises(RuntimeError, match="running already"),
                perturbation.at(0, 1.0),
            ):
                pass
        with perturbation.attached():
            pass

    @pytest.mark.parametrize(
        ("module", "message"),
        [
            (nn.LSTM(2, 2), "LSTM.*private list"),
            (nn.Embedding(3, 2, max_norm=1.0), "max_norm"),
        ],
    )
    def test_modules_whose_reads_cannot_be_seen(self, module: nn.Module, message: str) -> None:
        with pytest.raises(ValueError, match=message):
            perturbation_of(nn.Sequential(module))

    def test_compiled_models(self) -> None:
        wrapper = nn.Module()
        wrapper._orig_mod = nn.Linear(2, 2)
        with pytest.raises(ValueError, match=r"torch\.compile"):
            perturbation_of(wrapper)

    def test_parameters_that_left_the_model(self) -> None:
        model = nn.Sequential(nn.Linear(2, 3))
        perturbation = perturbation_of(model)
        model[0] = nn.Linear(2, 3)
        with (
            pytest.raises(ValueError, match=r"2 trained parameters \(shapes \(3, 2\), \(3,\)\)"),
            perturbation.attached(),
        ):
            pass

    def test_replicas(self) -> None:
        model = nn.Linear(2, 2)
        perturbation = perturbation_of(model)
        with perturbation.attached(), perturbation.at(SEED, SCALE):
            replica = model._replicate_for_data_parallel()
            with pytest.raises(RuntimeError, match="DataParallel"):
                replica(torch.ones(1, 2))
