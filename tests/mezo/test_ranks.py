"""Several processes against one that takes the same batches one after the other, bit for bit."""

from __future__ import annotations

import threading
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from gloo_ranks import on_ranks
from torch import nn

from llava.mezo import MeZO, MeZOConfig
from llava.mezo.lost_ranks import LostRankError, waiting_for_others
from llava.mezo.ranks import Ranks
from llava.mezo.same_weights import RanksDifferError, check_same_weights

STEPS, BATCHES, DIRECTIONS = 3, 12, 2
EPS = 1e-2


class Group:
    """Ranks as threads of this process."""

    def __init__(self, count: int, parallel_ways: int) -> None:
        self.barrier = threading.Barrier(count)
        self.numbers: dict[int, list[float]] = {}
        self.sent: list[int] = []
        self.ranks = [_Threaded(rank, count, parallel_ways, self) for rank in range(count)]


class _Threaded(Ranks):
    def __init__(self, rank: int, count: int, point_ways: int, group: Group) -> None:
        super().__init__(rank, count, point_ways)
        object.__setattr__(self, "group", group)

    def exchange(self, numbers: Any, device: torch.device) -> list[list[float]]:
        group: Group = self.group  # type: ignore[attr-defined]
        group.numbers[self.rank] = list(numbers)
        group.sent.append(8 * len(numbers))
        group.barrier.wait(60)
        found = [group.numbers[rank] for rank in range(self.count)]
        group.barrier.wait(60)
        return found


def make_model() -> nn.Module:
    model, generator = nn.Sequential(nn.Linear(5, 7), nn.Tanh(), nn.Linear(7, 3)), torch.Generator().manual_seed(1)
    for parameter in model.parameters():  # not by the global generator, which threads share
        parameter.data = 0.3 * torch.randn(parameter.shape, generator=generator)
    return model


def batch_of(step: int, number: int) -> tuple[torch.Tensor, torch.Tensor, float]:
    generator = torch.Generator().manual_seed(1000 * step + number)
    rows = 1 + number % 3
    x = torch.randn(rows, 5, generator=generator)
    return x, torch.randn(rows, 3, generator=generator), float(rows)


def train(config: MeZOConfig, ranks: Ranks | None, into: dict[int, Any], batches: int = BATCHES) -> None:
    """Some steps on this rank's batches: of so many a step, every so manyth as there are rows of ranks."""
    model, ranks = make_model(), ranks or Ranks()
    optimizer = MeZO(model.parameters(), model, config, ranks, lr=1e-2)
    losses = []
    for step in range(STEPS):
        for number in range(ranks.row, batches, ranks.rows):
            x, y, rows = batch_of(step, number)
            optimizer.accumulate(step, lambda x=x, y=y: nn.functional.mse_loss(model(x), y), weight=rows)  # type: ignore[misc]
        optimizer.step()
        assert optimizer.last is not None
        losses.append(optimizer.last.losses)
    into[ranks.rank] = losses, [p.detach().clone() for p in model.parameters()]


def in_threads(config: MeZOConfig, group: Group, **options: Any) -> dict[int, Any]:
    found: dict[int, Any] = {}
    threads = [threading.Thread(target=train, args=(config, rank, found), kwargs=options) for rank in group.ranks]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert sorted(found) == list(range(len(group.ranks)))
    return found


def assert_same(one: Any, other: Any) -> None:
    assert one[0] == other[0]
    assert all(torch.equal(a, b) for a, b in zip(one[1], other[1], strict=True))


@pytest.mark.parametrize(("count", "ways"), [(2, 1), (3, 1), (4, 1), (2, 2), (3, 3), (4, 4), (4, 2), (6, 2)])
def test_any_grid_ends_as_one_process_does(count: int, ways: int) -> None:
    """Records shared out, losses shared out (evenly and not), and both; several micro-batches of unequal weight."""
    config = MeZOConfig(eps=EPS, num_directions=DIRECTIONS)
    alone: dict[int, Any] = {}
    train(config, None, alone)
    for found in in_threads(config, Group(count, ways)).values():
        assert_same(found, alone[0])


@pytest.mark.parametrize(
    "settings",
    [
        {"estimator": "svrg", "anchor_steps": 2},
        {"estimator": "guided", "num_directions": 3},
        {"estimator": "fzoo", "num_directions": 3, "noise": "rademacher"},
        {"estimator": "one_point"},
    ],
    ids=lambda settings: settings["estimator"],
)
def test_losses_of_every_estimator_can_be_shared_out(settings: dict[str, Any]) -> None:
    """Also where points follow from losses, and there are fewer than ranks then."""
    config = MeZOConfig(eps=EPS, **{"num_directions": DIRECTIONS} | settings)
    alone: dict[int, Any] = {}
    train(config, None, alone, batches=1)
    ways = 3 if settings["estimator"] == "guided" else 2
    for found in in_threads(config, Group(ways, ways), batches=1).values():
        assert_same(found, alone[0])


def test_a_step_exchanges_its_losses_alone() -> None:
    """At most 16 bytes for each of the 2n losses and rank."""
    for count, ways in ((2, 1), (2, 2), (4, 2)):
        group = Group(count, ways)
        config = MeZOConfig(eps=EPS, num_directions=DIRECTIONS, check_ranks_steps=0)
        in_threads(config, group, batches=group.ranks[0].rows)
        assert len(group.sent) == STEPS * count
        assert sum(group.sent) <= STEPS * count * 16 * 2 * DIRECTIONS
        assert sum(group.sent) >= STEPS * count * 8 * 2 * DIRECTIONS / ways


def test_too_few_losses_for_so_many_ranks_are_refused() -> None:
    model = make_model()
    optimizer = MeZO(model.parameters(), model, MeZOConfig(eps=EPS), Ranks(0, 3, 3))
    with pytest.raises(RuntimeError, match="2 losses of a batch, which cannot be shared out to 3 processes"):
        optimizer.accumulate(0, lambda: 1.0)


@pytest.mark.parametrize(("parallel", "ways"), [("data", 1), ("directions", 6), ("both", 3)])
def test_grids(parallel: str, ways: int, monkeypatch: pytest.MonkeyPatch) -> None:
    assert Ranks.here(parallel, 9) == Ranks()
    monkeypatch.setattr(torch.distributed, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.distributed, "get_world_size", lambda: 6)
    monkeypatch.setattr(torch.distributed, "get_rank", lambda: 4)
    ranks = Ranks.here(parallel, 9)
    assert (ranks.point_ways, ranks.rows, ranks.row) == (ways, 6 // ways, 4 // ways)


GLOO = "[../gloo/transport/tcp/unbound_buffer.cc:81] Timed out waiting 10000ms for recv operation to complete"


@pytest.mark.parametrize(
    ("raised", "ranks", "found"),
    [
        (RuntimeError(GLOO), 2, LostRankError),
        (RuntimeError("NCCL error: remote process exited"), 2, LostRankError),
        (RuntimeError(GLOO), 1, RuntimeError),
        (RuntimeError("mat1 and mat2 shapes cannot be multiplied"), 2, RuntimeError),
        (RuntimeError("DataLoader timed out after 30 seconds"), 2, RuntimeError),
        (RanksDifferError("after step 5 rank 1 of 2 has other weights"), 2, RanksDifferError),
    ],
)
def test_an_error_of_the_network_alone_is_a_lost_rank(
    raised: RuntimeError, ranks: int, found: type, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.distributed, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.distributed, "get_world_size", lambda: ranks)
    monkeypatch.setattr(torch.distributed, "get_rank", lambda: 0)
    with pytest.raises(RuntimeError) as caught, waiting_for_others():
        raise raised
    assert type(caught.value) is found


@pytest.mark.slow
@pytest.mark.parametrize("count", [3, 4])
def test_processes(count: int, tmp_path: Path) -> None:
    """As in threads, over gloo; then one of them has a bit that flipped, and all say whose."""
    config = MeZOConfig(eps=EPS, num_directions=DIRECTIONS, parallel="both")
    alone: dict[int, Any] = {}
    train(config, None, alone)
    on_ranks(count, [partial(_measured, tmp_path)])
    for rank in range(count):
        assert (tmp_path / f"{rank}.txt").read_text() == (
            f"after step 5 rank 1 of {count} has other weights than the rest (2.bias)"
        )
        assert_same(torch.load(tmp_path / f"{rank}.pt"), alone[0])


def _measured(folder: Path) -> None:
    rank = torch.distributed.get_rank()
    config = MeZOConfig(eps=EPS, num_directions=DIRECTIONS, parallel="both")
    found: dict[int, Any] = {}
    train(config, Ranks.here(config.parallel, config.num_directions), found)
    torch.save(found[rank], folder / f"{rank}.pt")
    model = make_model()
    optimizer = MeZO(model.parameters(), model, config)
    stored = dict(zip(optimizer.names, optimizer.storages.values(), strict=True))
    check_same_weights(stored, 5, 0, optimizer.ranks, optimizer.device)
    if rank == 1:
        model[2].bias.data.view(torch.int32)[1] ^= 1  # type: ignore[operator,union-attr]
    for turn in range(len(stored)):
        try:
            check_same_weights(stored, 5, turn, optimizer.ranks, optimizer.device)
        except RanksDifferError as error:
            (folder / f"{rank}.txt").write_text(str(error).partition(", so")[0])
