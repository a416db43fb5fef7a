"""The simulator of many workers: closed forms, what a seed decides, and what a coordinator leaves out."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import pytest

BENCHMARK = Path(__file__).parents[2] / "scripts" / "benchmark"
sys.path.insert(0, str(BENCHMARK))

import fleet  # noqa: E402
import network  # noqa: E402
import scaling  # noqa: E402

FORWARD, UPDATE = 0.01, 0.002


def even(workers: int, latency: float = 0.0, bandwidth: float = float("inf"), slowness=None) -> fleet.Fleet:
    """Workers on equal links, of equal speed where `slowness` does not say otherwise, without jitter."""
    links = network.Network(np.full(workers, latency / 2), bandwidth, bandwidth)
    return fleet.Fleet(np.ones(workers) if slowness is None else np.array(slowness), 0.0, links)


def seconds(of: fleet.Fleet, way: str, how: str, directions: int = 1, drop: float = 0.0, steps: int = 6):
    work = fleet.Work(way, directions, FORWARD, UPDATE, gradient=1e6)
    return fleet.step_seconds(of, work, how, steps, np.random.default_rng(0), drop)


@pytest.mark.parametrize("how", ["ring", "tree", "coordinator"])
@pytest.mark.parametrize("workers", [2, 5, 64])
def test_without_stragglers_and_latency_a_step_is_its_work(how, workers):
    assert seconds(even(workers), "data", how, 3)["mean"] == pytest.approx(3 * (2 * FORWARD + UPDATE))
    shared = 2 * FORWARD * -(-7 // workers) + 7 * UPDATE
    assert seconds(even(workers), "direction", how, 7)["mean"] == pytest.approx(shared)


@pytest.mark.parametrize(
    ("how", "workers", "paths"),
    [("ring", 2, 2), ("ring", 8, 14), ("tree", 2, 2), ("tree", 8, 6), ("tree", 9, 6), ("coordinator", 8, 1)],
)
def test_latency_counts_once_a_round(how, workers, paths):
    """A coordinator in the middle is half a path away: there and back again is one."""
    work = 2 * FORWARD + UPDATE
    assert seconds(even(workers, latency=0.05), "data", how)["mean"] == pytest.approx(work + 0.05 * paths)


def test_gathering_by_ring_takes_half_the_rounds_of_a_sum():
    work = 2 * FORWARD + 4 * UPDATE
    assert seconds(even(4, latency=0.05), "direction", "ring", 4)["mean"] == pytest.approx(work + 3 * 0.05)


def test_bytes_cost_what_the_link_allows():
    wire = (1e6 / 2 + network.OVERHEAD) / 1e6
    assert seconds(even(2, bandwidth=1e6), "gradient", "ring")["mean"] == pytest.approx(FORWARD + UPDATE + 2 * wire)
    whole = (1e6 + network.OVERHEAD) / 1e6
    assert seconds(even(2, bandwidth=1e6), "gradient", "tree")["mean"] == pytest.approx(FORWARD + UPDATE + 2 * whole)


def test_a_coordinators_link_is_shared_by_all():
    links = network.Network(np.zeros(10), float("inf"), 1e3)
    own = fleet.Fleet(np.ones(10), 0.0, links)
    wire = (16 + network.OVERHEAD) / 1e3  # the last of ten answers comes last, and only its worker is then waited for
    assert seconds(own, "data", "coordinator")["mean"] == pytest.approx(11 * wire + 2 * FORWARD + UPDATE)


@pytest.mark.parametrize("how", ["ring", "tree", "coordinator"])
def test_the_slower_of_two_sets_the_pace(how):
    slow = seconds(even(2, slowness=[1.0, 3.0]), "data", how)
    assert slow["mean"] == pytest.approx(3 * (2 * FORWARD + UPDATE)) and slow["used"] == 1.0


def test_a_straggler_that_is_left_out_holds_nobody_up():
    """It has to apply what it missed, so that it catches up and its losses count now and then."""
    slowness = [1.0] * 9 + [10.0]
    found = seconds(even(10, slowness=slowness), "data", "coordinator", drop=0.1, steps=50)
    assert found["mean"] == pytest.approx(2 * FORWARD + UPDATE) and found["used"] == 0.9
    with pytest.raises(ValueError, match="nobody can be left out of a ring"):
        seconds(even(10), "data", "ring", drop=0.1)


def test_a_collective_never_ends_before_the_last_has_begun():
    rng = np.random.default_rng(3)
    links = network.Network.drawn(37, 0.02, 1e6, 0.5, rng, 1e7)
    ready = rng.exponential(size=37)
    for done in (
        network.all_reduce("ring", ready, links, 16),
        network.all_reduce("tree", ready, links, 16),
        network.all_gather("tree", ready, links, 16),
    ):
        assert (done > ready.max()).all()


def test_one_seed_gives_one_result():
    given = ("0.5b", "wide", "data, coordinator less 10 %", 16, 5)
    assert scaling.case(*given, 0) == scaling.case(*given, 0) != scaling.case(*given, 1)


def test_a_small_table(tmp_path):
    scaling.main(["--output", str(tmp_path / "scaling"), "--workers", "2", "8", "--steps", "3"])
    report = json.loads((tmp_path / "scaling.json").read_text())
    assert len(report["rows"]) == 2 * 2 * len(scaling.WAYS) * 2
    assert {row["bytes_sent"] for row in report["rows"] if row["way"] == "data, ring"} == {16.0}
    assert "| data, ring |" in (tmp_path / "scaling.md").read_text()
    assert (tmp_path / "scaling.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.long
def test_two_processes_are_measured_and_predicted():
    found = scaling.calibration(blocks=1, steps=3, directions=1, seed=0)
    assert found["predicted_ms"] > found["without_exchange_ms"] > 0 and found["measured_ms"] > 0
