"""Cross entropy, and how many tokens are right, without full logits: supervised positions, the vocabulary in chunks.

Logits of all tokens over the whole vocabulary would be by far the largest tensor of a forward (1,500 tokens of a 0.5B
Qwen2: 0.9 GB in float32), and a perturbed copy of the head's matrix the next one (0.27 GB). Here both exist for one
chunk of the vocabulary at a time, and log-sum-exp is put together from the chunks (Milakov and Gimelshein 2018).
"""

from __future__ import annotations

import math

import torch
from torch.nn import functional

from llava.mezo.noise import TILE

IGNORED = -100
CHUNK_BYTES = 8 * 2**20
"""Size of a chunk's weights, and at most of its logits, on a CPU: what its cache holds."""
CHUNKS = 10
"""Into how many chunks another device takes the head: few launches, and a chunk is no larger than a layer."""


def next_token_loss(
    hidden: torch.Tensor, head: torch.Tensor, labels: torch.Tensor, ignored: int = IGNORED, rows: int | None = None
) -> torch.Tensor:
    """Mean cross entropy of each supervised token given the hidden state before it; float32, without graph.

    Args:
        hidden: last hidden states [batch, length, D].
        head: weights of the output head [V, D].
        labels: [batch, length]; those that are `ignored` are not supervised, nor is the first of a row.
        rows: as for `cross_entropy`.

    Returns:
        A tensor of one element; NaN when no position is supervised, as in torch.

    To find the supervised positions waits for the device that holds the labels; where they are known, `cross_entropy`
    does the rest.
    """
    states, targets = supervised(hidden, labels, ignored)
    return cross_entropy(states, head, targets, ignored, rows)


def supervised(hidden: torch.Tensor, labels: torch.Tensor, ignored: int = IGNORED) -> tuple[torch.Tensor, torch.Tensor]:
    """The hidden states [n, D] before supervised tokens, and these tokens [n]; waits for the device."""
    targets = labels[:, 1:]
    chosen = targets != ignored
    return hidden[:, :-1][chosen], targets[chosen]


def cross_entropy(
    states: torch.Tensor, head: torch.Tensor, targets: torch.Tensor, ignored: int = IGNORED, rows: int | None = None
) -> torch.Tensor:
    """Mean cross entropy of `states` [n, D] times `head` [V, D] against `targets` [n]; float32, without graph.

    Args:
        head: read by slices of its rows, so a perturbed table (`tables.PerturbedTable`) is never made whole.
        targets: those that are `ignored` do not count.
        rows: vocabulary rows a chunk; default: by device. The result does not depend on it beyond rounding.

    Returns:
        A tensor of one element; NaN when nothing counts.
    """
    normaliser, chosen = log_likelihood(states, head, targets, rows)
    losses = normaliser - chosen
    counts = targets != ignored
    return losses.where(counts, 0.0).sum() / counts.sum()


def log_likelihood(
    states: torch.Tensor, head: torch.Tensor, targets: torch.Tensor, rows: int | None = None
) -> tuple[torch.Tensor, torch.Tensor]:
    """Log-sum-exp [n] of the logits of `states` [n, D] times `head` [V, D], and those [n] of the `targets`; float32.

    A target outside the vocabulary has 0. Arguments as of `cross_entropy`; under autocast products are in its dtype.
    """
    vocabulary = head.shape[0]
    step = rows or chunk_rows(head, len(targets))
    chosen = torch.zeros(targets.shape, dtype=torch.float32, device=states.device)
    normalisers = []
    for first in range(0, vocabulary, step):
        last = min(first + step, vocabulary)
        logits = functional.linear(states, head[first:last]).float()
        inside = (targets >= first) & (targets < last)
        index = (targets - first).clamp(0, last - first - 1)
        chosen = torch.where(inside, logits.gather(1, index[:, None]).squeeze(1), chosen)
        normalisers.append(logits.logsumexp(dim=1))
    return torch.stack(normalisers).logsumexp(dim=0), chosen


def token_errors(
    states: torch.Tensor, head: torch.Tensor, targets: torch.Tensor, ignored: int = IGNORED, rows: int | None = None
) -> torch.Tensor:
    """Share of the `targets` [n] that are not the most likely token; arguments and result as of `cross_entropy`.

    Of equally likely tokens the first counts.
    """
    vocabulary = head.shape[0]
    step = rows or chunk_rows(head, len(targets))
    best = torch.full(targets.shape, -math.inf, dtype=torch.float32, device=states.device)
    likeliest = torch.zeros_like(targets)
    for first in range(0, vocabulary, step):
        logits = functional.linear(states, head[first : first + step]).float()
        highest, place = logits.max(dim=1)
        likeliest = torch.where(highest > best, place + first, likeliest)
        best = torch.maximum(best, highest)
    counts = targets != ignored
    return (likeliest != targets).where(counts, False).sum() / counts.sum()


def chunk_rows(head: torch.Tensor, positions: int) -> int:
    """Rows of a chunk, which is whole tiles of the noise: as many as its weights and its logits allow."""
    vocabulary, width = head.shape
    row = width * head.dtype.itemsize
    granule = TILE // math.gcd(width, TILE)
    most = CHUNK_BYTES if head.device.type == "cpu" else max(CHUNK_BYTES, -(-vocabulary // CHUNKS) * row)
    rows = most // max(row, 4 * positions)
    return max(rows - rows % granule, granule)
