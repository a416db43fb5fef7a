"""Next-token loss without full logits: supervised positions only, the vocabulary in chunks.

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
"""Size of a chunk's weights, and at most of its logits."""


def next_token_loss(
    hidden: torch.Tensor, head: torch.Tensor, labels: torch.Tensor, ignored: int = IGNORED, rows: int | None = None
) -> torch.Tensor:
    """Mean cross entropy of each supervised token given the hidden state before it; float32, without graph.

    Args:
        hidden: last hidden states [batch, length, D].
        head: weights of the output head [V, D]. It is read by slices of its rows, so a perturbed table
            (`tables.PerturbedTable`) is never made whole.
        labels: [batch, length]; those that are `ignored` are not supervised, nor is the first of a row.
        rows: vocabulary rows a chunk; default: as many as fit `CHUNK_BYTES`. The result does not depend on it beyond
            rounding.

    Returns:
        A tensor of one element; NaN when no position is supervised, as in torch.
    """
    targets = labels[:, 1:]
    supervised = targets != ignored
    states, targets = hidden[:, :-1][supervised], targets[supervised]
    vocabulary = head.shape[0]
    step = rows or _chunk_rows(head, len(targets))
    chosen = torch.zeros(targets.shape, dtype=torch.float32, device=states.device)
    normalisers = []
    for first in range(0, vocabulary, step):
        last = min(first + step, vocabulary)
        logits = functional.linear(states, head[first:last]).float()
        inside = (targets >= first) & (targets < last)
        index = (targets - first).clamp(0, last - first - 1)
        chosen = torch.where(inside, logits.gather(1, index[:, None]).squeeze(1), chosen)
        normalisers.append(logits.logsumexp(dim=1))
    return (torch.stack(normalisers).logsumexp(dim=0) - chosen).mean()


def _chunk_rows(head: torch.Tensor, positions: int) -> int:
    """Rows whose weights, and whose logits at all positions, fit `CHUNK_BYTES`; chunks are whole tiles of the noise."""
    width = head.shape[1]
    granule = TILE // math.gcd(width, TILE)
    rows = CHUNK_BYTES // max(width * head.dtype.itemsize, 4 * positions)
    return max(rows - rows % granule, granule)
