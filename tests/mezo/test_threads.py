"""A loop on torch's threads: every part once, errors raised, and a pool where OpenMP cannot be used."""

import multiprocessing
import threading
from collections.abc import Iterator

import pytest
import torch

from llava.mezo.kernels import threads


@pytest.fixture(params=["openmp", "pool"])
def way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    if request.param == "pool":
        monkeypatch.setattr(threads, "_openmp", lambda: None)
    elif threads._openmp() is None:
        pytest.skip("this torch has no OpenMP that can be found")
    before = torch.get_num_threads()
    yield request.param
    torch.set_num_threads(before)


def parts_of(first: int, last: int) -> list[tuple[int, int]]:
    found: list[tuple[int, int]] = []
    threads.share(lambda a, b: found.append((a, b)), first, last)
    return sorted(found)


@pytest.mark.parametrize("count", [1, 2, 3])
def test_every_number_is_in_one_part(way: str, count: int) -> None:
    torch.set_num_threads(count)
    for first, last in ((0, 100), (7, 8), (5, 5)):
        assert [n for a, b in parts_of(first, last) for n in range(a, b)] == list(range(first, last))
    assert len(parts_of(0, 100)) == count


def test_parts_run_at_the_same_time_on_different_threads(way: str) -> None:
    torch.set_num_threads(2)
    both, names = threading.Barrier(2, timeout=30), set()

    def part(a: int, b: int) -> None:
        both.wait()
        names.add(threading.get_ident())

    threads.share(part, 0, 2)
    assert len(names) == 2


@pytest.mark.parametrize("bad", [0, 1])
def test_an_error_in_any_part_is_raised_and_the_next_loop_runs(way: str, bad: int) -> None:
    torch.set_num_threads(2)

    def part(a: int, b: int) -> None:
        if a == bad:
            raise IndexError(f"part {a}")

    with pytest.raises(IndexError, match=f"part {bad}"):
        threads.share(part, 0, 2)
    assert parts_of(0, 2) == [(0, 1), (1, 2)]


def _in_child(queue: "multiprocessing.Queue[list[tuple[int, int]]]") -> None:
    queue.put(parts_of(0, 2))


def test_a_forked_process_does_not_wait_for_threads_that_are_gone(way: str) -> None:
    torch.set_num_threads(2)
    parts_of(0, 2)  # the threads are there
    context = multiprocessing.get_context("fork")
    queue: multiprocessing.Queue[list[tuple[int, int]]] = context.Queue()
    child = context.Process(target=_in_child, args=(queue,))
    child.start()
    try:
        assert queue.get(timeout=30) == [(0, 1), (1, 2)]
    finally:
        child.join(timeout=10)
        child.kill()
