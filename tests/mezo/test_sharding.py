"""Weights in shards over processes: the bits of processes that have all of them, and the memory of a part."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from gloo_ranks import on_ranks
from torch import distributed, nn

from llava.mezo import MeZO, MeZOConfig
from llava.mezo.errors import InputError
from llava.mezo.head import cross_entropy
from llava.mezo.held import borders, first_element, local_part, write_into
from llava.mezo.journal.fingerprint import fingerprint
from llava.mezo.names import parameters_by_name
from llava.mezo.sharding import weights as sharded_weights
from llava.mezo.sharding.layout import Layout
from llava.mezo.sharding.optimizer import ShardedMeZO
from llava.mezo.sharding.shards import check_torch, shard_model
from llava.mezo.sharding.turns import Turns
from llava.mezo.sharding.weights import ShardedWeights
from llava.mezo.sharding.whole import fingerprint_of_shards, on_first_host, whole_on_first

WORDS, WIDTH = 23, 8
STEPS = 3


class Network(nn.Module):
    """A frozen tower, layers with rows that no number of ranks divides, a vector, a scalar, a head that is tied."""

    def __init__(self) -> None:
        super().__init__()
        self.tower = nn.ModuleList(nn.Linear(5, 5) for _ in range(2)).requires_grad_(False)
        self.words = nn.Embedding(WORDS, WIDTH)
        self.places = nn.Embedding(40, WIDTH).requires_grad_(False)
        self.layers = nn.ModuleList(
            nn.Sequential(nn.Linear(WIDTH, 17), nn.GELU(), nn.Linear(17, WIDTH), nn.LayerNorm(WIDTH)) for _ in range(2)
        )
        self.two = nn.Parameter(torch.tensor([0.5, 0.25]))
        self.scalar = nn.Parameter(torch.tensor(0.7))
        self.projector = nn.Linear(5, WIDTH)
        self.head = nn.Linear(WIDTH, WORDS, bias=False)
        self.head.weight = self.words.weight

    def forward(self, ids: torch.Tensor, image: torch.Tensor | None) -> torch.Tensor:
        x = self.words(ids) + self.places(torch.arange(len(ids)))
        if image is not None:
            for layer in self.tower:
                image = layer(image)
            x = x + self.projector(image) * self.two[0]
        for layer in self.layers:
            x = x + layer(x) * self.scalar
        return cross_entropy(x[:-1], self.head.weight, ids[1:], rows=4)


def batch(rank: int, step: int, dtype: torch.dtype) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Of each rank another length, and images on some."""
    generator = torch.Generator().manual_seed(10 * step + rank)
    length = 4 + 2 * rank + 20 * (step == 2)
    ids = torch.randint(0, WORDS, (length,), generator=generator)
    image = torch.randn(length, 5, generator=generator).to(dtype)
    return ids, image if (rank + step) % 2 else None


def trained(sharded: bool, dtype: torch.dtype, **settings: Any) -> tuple[Network, MeZO, list[Any]]:
    """A network after some steps; what they measured, and the loss of the weights at the end."""
    settings = {"eps": 1e-2, "kernel": "torch"} | settings
    torch.manual_seed(0)
    network = Network().to(dtype)
    if sharded:
        shard_model(network, torch.device("cpu"))
    parameters = [parameter for parameter in network.parameters() if parameter.requires_grad]
    groups = [{"params": parameters[:3], "lr": 1e-2}, {"params": parameters[3:], "lr": 3e-2, "weight_decay": 0.1}]
    kind = ShardedMeZO if sharded else MeZO
    mezo = kind(groups if settings.get("estimator") != "svrg" else parameters, network, MeZOConfig(**settings), lr=1e-2)
    measured: list[Any] = []
    for step in range(STEPS):
        ids, image = batch(distributed.get_rank(), step, dtype)
        mezo.accumulate(step, lambda ids=ids, image=image: network(ids, image))
        mezo.step()
        measured.append(mezo.last)
    with mezo.current_weights(), torch.no_grad():
        measured.append(float(network(ids, image)))
    return network, mezo, measured


CASES: dict[int, list[tuple[torch.dtype, dict[str, Any]]]] = {
    2: [
        (torch.float32, {"noise": "rademacher", "tensor_scales": "rms"}),
        (torch.bfloat16, {"estimator": "svrg", "anchor_steps": 2, "kernel": "reference"}),
    ],
    3: [
        (torch.bfloat16, {"estimator": "lowrank", "rank": 2}),
        (torch.float16, {"estimator": "guided", "num_directions": 2, "rule": "momentum"}),
    ],
}
"""By ranks; with the torch kernel otherwise: `test_sharded_runs.py` has the one that is taken on CPUs."""


def same_bits() -> None:
    """Losses, projected gradients and weights of all cases are those of ranks that have all weights."""
    ranks = distributed.get_world_size()
    for dtype, settings in CASES[ranks]:
        plain, _, expected = trained(False, dtype, **settings)
        shared, mezo, measured = trained(True, dtype, **settings)
        assert measured == expected, settings
        assert isinstance(mezo.weights, ShardedWeights)
        whole = sum(p.numel() * p.element_size() for p in plain.parameters())
        assert mezo.weights.held <= whole / ranks + 16 * WIDTH * dtype.itemsize
        held = torch.tensor(mezo.weights.held)
        distributed.all_reduce(held)
        assert held == whole + (ranks - 1) * dtype.itemsize  # the scalar
        before = parameters_by_name(plain)
        for name, parameter in parameters_by_name(shared).items():
            found = on_first_host(parameter)
            assert found is None or torch.equal(found, before[name]), name
        given = {name: parameter.detach() for name, parameter in before.items()}
        assert fingerprint_of_shards(parameters_by_name(shared)) == fingerprint(given)
        with whole_on_first(shared):
            if distributed.get_rank() == 0:
                assert all(torch.equal(a, b) for a, b in zip(shared.parameters(), plain.parameters(), strict=True))
                assert shared.head.weight is shared.words.weight
    assert parameters_by_name(shared).keys() == before.keys()


def stripes() -> None:
    """The same with a head that is gathered a row at a time."""
    sharded_weights.STRIPE_BYTES = 3 * WIDTH * 2
    _, _, expected = trained(False, torch.bfloat16)
    _, _, measured = trained(True, torch.bfloat16)
    assert measured == expected


def bytes_of_a_forward() -> None:
    """What comes from the others is all that they hold of what is read, once a forward."""
    torch.manual_seed(0)
    network = nn.Sequential(nn.ModuleList(nn.Linear(32, 64 * 2, bias=False) for _ in range(2)))
    shard_model(network, torch.device("cpu"))
    mezo = ShardedMeZO(network.parameters(), network, MeZOConfig(kernel="torch"), lr=1e-3)
    assert isinstance(mezo.weights, ShardedWeights)
    layers, rank = list(network[0]), distributed.get_rank()
    for step, reads in enumerate((2, 1 + rank)):
        before, turns = mezo.weights.received, mezo.weights.turns.taken
        mezo.accumulate(step, lambda reads=reads: sum(layer(torch.ones(32)).mean() for layer in layers[:reads]))
        mezo.step()
        ranks = distributed.get_world_size()
        assert mezo.weights.received - before == 2 * 2 * (32 * 128 * 4) * (ranks - 1) // ranks
        assert mezo.weights.turns.taken - turns == 2 * 3
    assert mezo.weights.held == 2 * 32 * 128 * 4 // ranks


def turns_of_the_ranks() -> None:
    """Who is ahead waits; from the second time on, what all need is gathered once."""
    turns, rank = Turns(), distributed.get_rank()
    way = [(1, 7), (1, 8), (1, 1), (1, 2)] if rank == 0 else [(1, 1), (1, 2)]
    taken = []
    for _ in range(2):
        start = turns.taken
        for wanted in way:
            while turns.next(wanted, 0).request != wanted:
                pass
        while turns.next((), 0).request:
            pass
        taken.append(turns.taken - start)
    assert taken[0] > taken[1] == 5, taken
    with pytest.raises(RuntimeError, match="different points"):
        turns.next((1, 1), rank)


def unread_rows() -> None:
    """A row that is not there is an error where it is asked for, before anybody is kept waiting."""
    torch.manual_seed(0)
    network = Network()
    shard_model(network, torch.device("cpu"))
    mezo = ShardedMeZO(
        [p for p in network.parameters() if p.requires_grad], network, MeZOConfig(kernel="torch"), lr=1e-3
    )
    with pytest.raises(IndexError, match="23 rows"):
        mezo.accumulate(0, lambda: network(torch.tensor([3, WORDS]), None))


def refusals() -> None:
    """What is cut in another way, and what gathers in another way."""
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard
    from torch.distributed.tensor import Replicate, distribute_tensor

    linear = nn.Linear(4, 4)
    linear.weight = nn.Parameter(
        distribute_tensor(linear.weight.detach(), init_device_mesh("cpu", (2,)), [Replicate()])
    )
    with pytest.raises(ValueError, match="shard_model cuts"):
        ShardedMeZO(linear.parameters(), linear, MeZOConfig())
    linear = nn.Linear(4, 4)
    fully_shard(linear, mesh=init_device_mesh("cpu", (2,)))
    with pytest.raises(ValueError, match="fully_shard"):
        ShardedMeZO(linear.parameters(), linear, MeZOConfig())
    torch.manual_seed(0)
    linear = nn.Linear(4, 4).bfloat16()
    if distributed.get_rank() == 1:
        linear.bias.data[2] += 1
    with pytest.raises(InputError, match="rank 1 of 2: its copy of the base model has another bias than the rest"):
        shard_model(linear, torch.device("cpu"))
    torch.manual_seed(0)
    linear = nn.Linear(4, 4).bfloat16()
    shard_model(linear, torch.device("cpu"))
    with pytest.raises(ValueError, match="in shards, which MeZO does not put together"):
        MeZO(linear.parameters(), linear, MeZOConfig())
    per_example = {"estimator": "per_example", "num_directions": 2}
    for settings in ({"storage": "fixed16"}, per_example, {"parallel": "directions"}):
        with pytest.raises(ValueError, match=r"not as fixed16|measure the same points"):
            ShardedMeZO(linear.parameters(), linear, MeZOConfig(**settings))


def has_shards() -> bool:
    """Whether this torch is new enough."""
    try:
        check_torch()
    except InputError:
        return False
    return True


@pytest.mark.slow
@pytest.mark.skipif(not has_shards(), reason="torch is too old for shards")
@pytest.mark.parametrize("count", [2, 3])
def test_shards(count: int) -> None:
    on_two = [stripes, turns_of_the_ranks, unread_rows, bytes_of_a_forward, refusals]
    on_ranks(count, [same_bits, *on_two] if count == 2 else [same_bits])


@pytest.mark.parametrize(
    ("length", "ranks", "expected"), [(5, 3, [0, 2, 4, 5]), (4, 3, [0, 2, 4, 4]), (2, 2, [0, 1, 2])]
)
def test_borders(length: int, ranks: int, expected: list[int]) -> None:
    assert borders(length, ranks) == expected
    chunks = torch.arange(length).chunk(ranks)
    sizes = [len(chunk) for chunk in chunks] + [0] * (ranks - len(chunks))
    assert [b - a for a, b in zip(expected, expected[1:], strict=False)] == sizes


def test_layout() -> None:
    shapes, dtypes = [torch.Size((5, 3)), torch.Size((2,))], [torch.bfloat16, torch.float32]
    layout = Layout.of(shapes, dtypes, 3)
    assert layout.counts == ((6, 1), (6, 1), (3, 0)) and layout.size == 512
    gathered = torch.zeros(3, layout.size, dtype=torch.uint8)
    weights = [torch.arange(15).bfloat16().view(5, 3), torch.tensor([1.0, 2.0])]
    for rank in range(3):
        for view, weight, cut in zip(layout.views(gathered[rank], rank), weights, (2, 1), strict=True):
            view.copy_(weight[rank * cut : (rank + 1) * cut].reshape(-1))
    whole = layout.whole(gathered, torch.empty(layout.whole_size, dtype=torch.uint8))
    assert all(torch.equal(a, b) for a, b in zip(whole, weights, strict=True))


def test_what_is_not_sharded() -> None:
    parameter = nn.Parameter(torch.zeros(2, 3))
    assert local_part(parameter).data_ptr() == parameter.data_ptr() and first_element(parameter) == 0
    write_into(parameter, torch.ones(2, 3))
    assert parameter.sum() == 6
    with pytest.raises(ValueError, match="shape"):
        write_into(parameter, torch.ones(3, 3))
    with pytest.raises(RuntimeError if has_shards() else InputError, match=r"torchrun|torch 2\.6"):
        shard_model(nn.Linear(2, 2), torch.device("cpu"))


@pytest.mark.parametrize(("version", "fits"), [("2.5.1", False), ("2.6.0+cpu", True), ("3.0.0a0", True)])
def test_versions_of_torch(version: str, fits: bool) -> None:
    if fits:
        check_torch(version)
    else:
        with pytest.raises(InputError, match=r"torch 2\.6 or later, and this is 2\.5\.1"):
            check_torch(version)
