"""Perturbed passes: what is read where, what is kept and dropped, and that nothing stays behind."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional

from llava.mezo import passes, units
from llava.mezo.algorithms.interface import Point
from llava.mezo.noise import direction_values
from llava.mezo.perturb import Perturbation
from llava.mezo.scratch import ALIGNED, ScratchPool
from llava.mezo.tables import PerturbedTable
from llava.mezo.trained import TrainedWeights
from llava.mezo.updates import Update
from llava.mezo.weights import store

SEED, SCALE = 77, 0.05


def perturbation_of(model: nn.Module, *parameters: nn.Parameter) -> Perturbation:
    chosen = parameters or tuple(model.parameters())
    weights = TrainedWeights([store(p, "native") for p in chosen], "gaussian", "torch")
    return Perturbation(model, chosen, weights)


def expected(perturbation: Perturbation, parameter: nn.Parameter, scale: float = SCALE) -> torch.Tensor:
    number = perturbation.numbers[parameter]
    z = torch.from_numpy(direction_values(SEED, number, 0, parameter.numel(), "gaussian")).view(parameter.shape)
    return (parameter.detach().float() + torch.tensor(scale) * z).to(parameter.dtype)


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
            m.other.weight.clone(),
            m.vector,
            m.listed[1],
            m.layers["a"].weight.clone(),
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


def test_a_table_cannot_be_used_after_its_pass() -> None:
    perturbation = perturbation_of(nn.Embedding(9, 4))
    with perturbation.attached():
        with perturbation.at(SEED, SCALE):
            table = perturbation.model.weight
        for use in (lambda: table[2:4], lambda: functional.embedding(torch.tensor([1]), table), table.sum):
            with pytest.raises(RuntimeError, match="after its pass has ended"):
                use()


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
        original = perturbation.weights.span

        def counting(number: int, first: int, last: int, *rest: Any) -> list[torch.Tensor]:
            counted.append(last - first)
            return original(number, first, last, *rest)

        perturbation.weights.span = counting  # type: ignore[method-assign]
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
            assert counted == [4, 3, 0]

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
    seen: list[list[int]] = []

    def forward(m: Any, x: torch.Tensor) -> torch.Tensor:
        for layer in m.layers:
            x = layer(x)
            lane = perturbation._passes.current
            assert lane is not None
            seen.append([*lane.copies, *lane.made, *lane.kept])
        return x

    model = Probe(forward, layers=nn.ModuleList(nn.Linear(4, 4) for _ in range(3)))
    perturbation = perturbation_of(model)
    run(perturbation, torch.ones(1, 4))
    assert seen == [[], [], []]


class TestLayers:
    """Entries of a ModuleList, whose weights are perturbed together."""

    def layers(self, made: list[tuple[int, ...]], forward: Any = None, depth: int = 2) -> Perturbation:
        """Two matrices and two biases each."""
        body = forward or (lambda m, x: m.two(torch.tanh(m.one(x))))
        layers = [Probe(body, one=nn.Linear(8, 8), two=nn.Linear(8, 8)) for _ in range(depth)]
        model = Probe(lambda m, x: [x := layer(x) for layer in m.layers][-1], layers=nn.ModuleList(layers))
        perturbation = perturbation_of(model)
        original = perturbation.weights.perturbed

        def noting(numbers: tuple[int, ...], *rest: Any) -> Any:
            made.append(tuple(numbers))
            return original(numbers, *rest)

        perturbation.weights.perturbed = noting  # type: ignore[method-assign]
        return perturbation

    def check(self, perturbation: Perturbation) -> None:
        x = want = torch.randn(3, 8)
        got = run(perturbation, x)
        for layer in perturbation.model.layers:
            one, one_bias, two, two_bias = (expected(perturbation, p) for p in layer.parameters())
            want = functional.linear(torch.tanh(functional.linear(want, one, one_bias)), two, two_bias)
        assert torch.equal(got, want)

    def test_a_layer_is_made_at_once(self) -> None:
        made: list[tuple[int, ...]] = []
        self.check(self.layers(made))
        assert made == [(0, 1, 2, 3), (4, 5, 6, 7)]

    def test_the_last_matrix_of_a_large_layer_is_made_apart(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(units, "LARGE_LAYER", 100)
        made: list[tuple[int, ...]] = []
        self.check(self.layers(made))
        assert made == [(0, 1, 3), (2,), (4, 5, 7), (6,)]

    def test_copies_go_as_soon_as_their_owners_return(self) -> None:
        left: list[list[int]] = []

        def forward(m: Any, x: torch.Tensor) -> torch.Tensor:
            x = torch.tanh(m.one(x))
            left.append(sorted(perturbation._passes.current.copies))  # type: ignore[union-attr]
            return m.two(x)

        perturbation = self.layers([], forward, depth=1)
        self.check(perturbation)
        assert left == [[2, 3]]

    def test_a_module_that_runs_twice_in_a_layer_is_made_twice(self) -> None:
        made: list[tuple[int, ...]] = []
        perturbation = self.layers(made, lambda m, x: m.one(m.one(x)), depth=1)
        x = torch.randn(3, 8)
        weight, bias = (expected(perturbation, p) for p in perturbation.model.layers[0].one.parameters())
        want = functional.linear(functional.linear(x, weight, bias), weight, bias)
        assert torch.equal(run(perturbation, x), want)
        assert made == [(0, 1, 2, 3), (0,), (1,)]

    def test_weights_that_are_used_past_their_modules_stay_until_the_layer_returns(self) -> None:
        made: list[tuple[int, ...]] = []
        by_hand = lambda m, x: functional.linear(  # noqa: E731
            torch.tanh(functional.linear(x, m.one.weight, m.one.bias)), m.two.weight, m.two.bias
        )
        self.check(self.layers(made, by_hand))
        assert made == [(0, 1, 2, 3), (4, 5, 6, 7)]

    def test_layers_that_are_not_run_themselves_are_made_by_modules(self, caplog: pytest.LogCaptureFixture) -> None:
        """Their parts are called from outside; after the first read of a matrix the hooks are where they belong."""
        caplog.set_level("INFO")
        made: list[tuple[int, ...]] = []
        perturbation = self.layers(made)
        perturbation.model.function = lambda m, x: [x := layer.two(torch.tanh(layer.one(x))) for layer in m.layers][-1]
        self.check(perturbation)
        assert "parts of Probe are run" in caplog.text
        made.clear()
        self.check(perturbation)
        assert made == [(0, 1), (2, 3), (4, 5), (6, 7)]

    def test_nested_lists_of_layers_are_units_from_the_inside(self) -> None:
        inner = [nn.ModuleList(nn.Linear(4, 4) for _ in range(2)) for _ in range(2)]
        model = Probe(
            lambda m, x: [x := expert(x) for experts in m.outer for expert in experts][-1], outer=nn.ModuleList(inner)
        )
        found = units.find_units(model, set(model.parameters()))
        assert list(found) == [expert for experts in inner for expert in experts]


class TestSideBySide:
    """Two forwards that take turns, here on a CPU."""

    @pytest.fixture(autouse=True)
    def on_cpu(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(passes, "SIDE_BY_SIDE_ON", {"cpu"})

    def pair(self, perturbation: Perturbation, *args: Any) -> list[Any]:
        with perturbation.attached():
            perturbation.weights.aim((Point.along(SEED, SCALE), Point.along(SEED, -SCALE)))
            return perturbation.run(lambda: perturbation.model(*args), 2)

    def counted(self, perturbation: Perturbation) -> list[tuple[Any, ...]]:
        """(numbers, points) of everything that is made from now on."""
        calls: list[tuple[Any, ...]] = []
        for name in ("perturbed", "span"):
            original = getattr(perturbation.weights, name)

            def noting(*args: Any, original: Any = original) -> Any:
                calls.append(args[:-1])
                return original(*args)

            setattr(perturbation.weights, name, noting)
        return calls

    def model(self) -> Probe:
        torch.manual_seed(0)
        layers = nn.ModuleList(nn.TransformerEncoderLayer(16, 2, 32, dropout=0.0, batch_first=True) for _ in range(3))

        def forward(m: Any, ids: torch.Tensor) -> torch.Tensor:
            x = m.embed(ids) + m.vector
            for layer in m.layers:
                x = layer(x)
            return functional.linear(m.norm(x), m.head.weight)

        return Probe(
            forward,
            embed=nn.Embedding(30, 16),
            vector=nn.Parameter(torch.randn(16)),
            layers=layers,
            norm=nn.LayerNorm(16),
            head=nn.Linear(16, 30, bias=False),
        )

    @pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
    def test_it_gives_the_bits_of_two_forwards_and_makes_each_weight_once(self, dtype: torch.dtype) -> None:
        pytest.importorskip("greenlet")
        perturbation = perturbation_of(self.model().to(dtype))
        ids = torch.tensor([[3, 1, 2, 7]])
        apart = []
        for scale in (SCALE, -SCALE):
            with perturbation.attached(), perturbation.at(SEED, scale):
                apart.append(perturbation.model(ids))
        calls = self.counted(perturbation)
        together = self.pair(perturbation, ids)
        assert torch.equal(together[0], apart[0]) and torch.equal(together[1], apart[1])
        assert not torch.equal(together[0], together[1])
        assert len(calls) == 6 and all(points == [0, 1] for *_, points in calls)  # vector, layers, norm, head

    def test_on_a_cpu_one_comes_after_the_other(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.undo()
        perturbation = perturbation_of(self.model())
        calls = self.counted(perturbation)
        self.pair(perturbation, torch.tensor([[3, 1, 2, 7]]))
        assert [points for *_, points in calls] == [[0]] * 6 + [[1]] * 6

    def test_without_greenlet_one_comes_after_the_other(
        self, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
    ) -> None:
        perturbation = perturbation_of(self.model())
        ids = torch.tensor([[3, 1, 2, 7]])
        together = self.pair(perturbation, ids)
        monkeypatch.setattr(passes, "greenlet", None)
        passes.side_by_side.cache_clear()
        calls = self.counted(perturbation)
        try:
            apart = self.pair(perturbation, ids)
            self.pair(perturbation, ids)
        finally:
            monkeypatch.undo()
            passes.side_by_side.cache_clear()
        assert all(map(torch.equal, together, apart))
        assert [points for *_, points in calls] == [[0]] * 6 + [[1]] * 6 + [[0]] * 6 + [[1]] * 6
        assert caplog.text.count("greenlet is not installed") == 1

    def test_forwards_that_go_different_ways_get_what_they_ask_for(self) -> None:
        """One of them visits the layers backwards, and another one twice."""
        turns = iter(range(10))

        def forward(m: Any, x: torch.Tensor) -> torch.Tensor:
            layers = list(m.layers)
            for layer in layers if next(turns) % 2 == 0 else [*reversed(layers), layers[1]]:
                x = layer(x)
            return x

        model = Probe(forward, layers=nn.ModuleList(nn.Linear(4, 4) for _ in range(3)))
        perturbation = perturbation_of(model)
        x = torch.randn(2, 4)

        def along(scale: float, layers: list[Any]) -> torch.Tensor:
            y = x
            for layer in layers:
                y = functional.linear(y, *(expected(perturbation, p, scale) for p in layer.parameters()))
            return y

        plus, minus = self.pair(perturbation, x)
        first, second, third = model.layers
        assert torch.equal(plus, along(SCALE, [first, second, third]))
        assert torch.equal(minus, along(-SCALE, [third, second, first, second]))

    @pytest.mark.parametrize("failing", [0, 1])
    def test_when_one_fails_the_other_ends_and_nothing_stays(self, failing: int) -> None:
        turns, left = iter(range(10)), []

        def forward(m: Any, x: torch.Tensor) -> torch.Tensor:
            own = next(turns)
            try:
                x = m.layers[1](m.layers[0](x))
                if own == failing:
                    raise KeyError("in the middle")
                return m.layers[2](x)
            finally:
                left.append(own)

        model = Probe(forward, layers=nn.ModuleList(nn.Linear(4, 4) for _ in range(3)))
        perturbation = perturbation_of(model)
        with pytest.raises(KeyError, match="in the middle"):
            self.pair(perturbation, torch.ones(1, 4))
        assert sorted(left) == [0, 1]
        assert perturbation._passes.current is None and perturbation._passes.lanes == []
        assert all("forward" not in m.__dict__ and not m._forward_hooks for m in model.modules())
        assert len(self.pair(perturbation, torch.ones(1, 4))) == 2

    def test_autocast_within_a_forward_stays_its_own(self) -> None:
        seen: list[tuple[int, bool]] = []
        turns = iter(range(10))

        def forward(m: Any, x: torch.Tensor) -> torch.Tensor:
            own = next(turns)
            with torch.autocast("cpu", dtype=torch.bfloat16, enabled=own == 0):
                for layer in m.layers:
                    x = layer(x)
                    seen.append((own, torch.is_autocast_cpu_enabled()))
            return x

        model = Probe(forward, layers=nn.ModuleList(nn.Linear(4, 4) for _ in range(3)))
        perturbation = perturbation_of(model)
        plus, minus = self.pair(perturbation, torch.ones(1, 4))
        assert sorted(seen) == [(0, True)] * 3 + [(1, False)] * 3
        assert (plus.dtype, minus.dtype) == (torch.bfloat16, torch.float32)
        assert not torch.is_autocast_cpu_enabled()


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
    assert {one.data_ptr() % ALIGNED for one in taken} == {0}
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
    assert not any("forward" in m.__dict__ for m in model.modules())


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


def test_transposed_weights_are_numbered_in_logical_order() -> None:
    weight = nn.Parameter(torch.randn(5, 7).t())
    values = weight.detach().clone(memory_format=torch.contiguous_format)
    perturbation = perturbation_of(Probe(lambda m: m.w, w=weight))
    assert torch.equal(weight, values)
    assert torch.equal(run(perturbation), expected(perturbation, weight))
    twin = nn.Parameter(values)
    for parameter in (weight, twin):
        weights = TrainedWeights([store(parameter, "native")], "gaussian", "torch")
        weights.update([Update((1,), ((0.5,),), (0.75,))])
    assert torch.equal(weight, twin)


@pytest.mark.parametrize("view", [torch.randn(5, 8)[:, ::2], torch.randn(3).expand(4, 3)])
def test_weights_in_memory_of_others_are_refused(view: torch.Tensor) -> None:
    with pytest.raises(ValueError, match=r"shape \(\d, \d\) is a view"):
        store(nn.Parameter(view), "native")


def test_weights_that_move_are_followed() -> None:
    model = nn.Linear(4, 4)
    perturbation = perturbation_of(model)
    x = torch.ones(1, 4)
    for _ in range(2):
        want = functional.linear(x, *(expected(perturbation, p) for p in model.parameters()))
        assert torch.equal(run(perturbation, x), want)
        model.weight.data = model.weight.data * 2
    before = model.weight.detach().clone()
    perturbation.weights.update([Update((1,), ((0.0,),), (0.5,))])
    assert torch.equal(model.weight, before / 2)


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
            with perturbation.at(0, 1.0), pytest.raises(RuntimeError, match="running already"), perturbation.at(0, 1.0):
                pass
        with perturbation.attached():
            pass

    @pytest.mark.parametrize(
        ("module", "message"), [(nn.LSTM(2, 2), "LSTM.*private list"), (nn.Embedding(3, 2, max_norm=1.0), "max_norm")]
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


def test_all_recordings_have_the_same_streams(monkeypatch: pytest.MonkeyPatch) -> None:
    class Stream:
        device_index = 0

        def __init__(self, device: int = 0) -> None:
            pass

        def wait_stream(self, other: Stream) -> None:
            pass

    main = Stream()
    replaced = {
        "Stream": Stream,
        "current_stream": lambda: main,
        "set_stream": lambda stream: None,
        "is_available": lambda: True,
        "is_current_stream_capturing": lambda: True,
    }
    for name, value in replaced.items():
        monkeypatch.setattr(torch.cuda, name, value)
    passes._side_stream.cache_clear()
    with passes._Streams.of(3) as one, passes._Streams.of(2) as other:
        assert one is not None and other is not None
        assert len({main, *one.side}) == 3 and other.side == one.side[:1]
    passes._side_stream.cache_clear()
