"""Workers on a network, and when each of them has the result of a collective: ring, tree, or through a coordinator.

A message of s bytes from i to j arrives latency_i + latency_j + (s + OVERHEAD) / bandwidth after it was sent; a link
sends one message after the other. Where everybody waits for everybody, the events of a collective follow each other in
rounds, and each round is one line of arithmetic on the times of all workers; where the slowest are left behind, see
`coordinator.py`.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Times = NDArray[np.float64]
"""Seconds, one a worker."""

OVERHEAD = 66
"""Bytes of a message beside what it says: Ethernet, IPv4 and TCP with time stamps."""


@dataclass(frozen=True)
class Network:
    """The links of the workers.

    Attributes:
        latency: seconds from each worker to the middle of the network, [workers].
        bandwidth: bytes a second of each worker's link, either way.
        centre: bytes a second of the coordinator's link, either way; it sits in the middle.
    """

    latency: Times
    bandwidth: float
    centre: float

    @classmethod
    def drawn(
        cls, workers: int, latency: float, bandwidth: float, spread: float, rng: np.random.Generator, centre: float
    ) -> Network:
        """Paths between two workers take `latency` seconds in the median; halves of them are log-normal."""
        return cls(latency / 2 * np.exp(spread * rng.standard_normal(workers)), bandwidth, centre)

    def sending(self, size: float) -> float:
        """Seconds that a message of `size` bytes keeps a worker's link busy."""
        return (size + OVERHEAD) / self.bandwidth


def ring(ready: Times, network: Network, size: float, rounds: int) -> Times:
    """When each worker has the message of the last round: in each it passes `size` bytes on to the next worker.

    An all-reduce of S bytes has 2 (N - 1) rounds of S / N, an all-gather of S bytes a worker N - 1 rounds of S.
    """
    busy = network.sending(size)
    path = network.latency + np.roll(network.latency, 1) + busy
    have, free = ready, ready
    for _ in range(rounds):
        start = np.maximum(have, free)
        have, free = np.maximum(have, np.roll(start, 1) + path), start + busy
    return have


def tree(ready: Times, network: Network, up: float, down: float, gather: bool = False) -> Times:
    """When each worker has the result: up a binomial tree to worker 0, `up` bytes a message, and down, `down` bytes.

    Args:
        gather: messages grow on their way up, by `up` for each worker that they speak of.
    """
    workers = len(ready)
    levels = math.ceil(math.log2(workers)) if workers > 1 else 0
    have, latency = ready.copy(), network.latency
    for level in range(levels):
        reach = 2**level
        child = np.arange(reach, workers, 2 * reach)
        size = up * np.minimum(reach, workers - child) if gather else up
        arrival = have[child] + latency[child] + latency[child - reach] + network.sending(0) + size / network.bandwidth
        have[child - reach] = np.maximum(have[child - reach], arrival)
    done = np.full(workers, np.inf)
    done[0] = have[0]
    free = done.copy()
    for level in reversed(range(levels)):
        reach = 2**level
        child = np.arange(reach, workers, 2 * reach)
        done[child] = free[child - reach] + latency[child] + latency[child - reach] + network.sending(down)
        free[child - reach] += network.sending(down)
        free[child] = done[child]
    return done


def all_reduce(kind: str, ready: Times, network: Network, size: float) -> Times:
    """When each worker has the sum of everybody's `size` bytes, by "ring" or "tree"; a number is not cut in two."""
    workers = len(ready)
    if kind == "ring":
        return ring(ready, network, max(8.0, size / workers), 2 * (workers - 1))
    return tree(ready, network, size, size)


def all_gather(kind: str, ready: Times, network: Network, share: float) -> Times:
    """When each worker has everybody's `share` bytes, by "ring" or "tree"."""
    if kind == "ring":
        return ring(ready, network, share, len(ready) - 1)
    return tree(ready, network, share, share * len(ready), gather=True)
