"""Decoders of OPT's shapes with random weights (Zhang et al. 2022, table 1), which ZO2's figures are of."""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional

from llava.mezo.head import cross_entropy

SHAPES = {
    "opt-tiny": (2, 64, 4),
    "opt-1.3b": (24, 2048, 32),
    "opt-2.7b": (32, 2560, 32),
    "opt-6.7b": (32, 4096, 32),
    "opt-13b": (40, 5120, 40),
    "opt-30b": (48, 7168, 56),
    "opt-66b": (64, 9216, 72),
    "opt-175b": (96, 12_288, 96),
}
"""Layers, width, heads."""
VOCABULARY, POSITIONS = 50_272, 2048


class Layer(nn.Module):
    """Attention and an MLP of four widths, each behind a norm."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm_1, self.norm_2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.q, self.k, self.v, self.out = (nn.Linear(width, width) for _ in range(4))
        self.up, self.down = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

    def forward(self, states: torch.Tensor) -> torch.Tensor:
        """States [rows, tokens, width] to as many."""
        return self._mlp(self._attention(states))

    def _attention(self, states: torch.Tensor) -> torch.Tensor:
        normed = self.norm_1(states)
        q, k, v = (one(normed).unflatten(-1, (self.heads, -1)).transpose(1, 2) for one in (self.q, self.k, self.v))
        attended = functional.scaled_dot_product_attention(q, k, v, is_causal=True)
        return states + self.out(attended.transpose(1, 2).flatten(2))

    def _mlp(self, states: torch.Tensor) -> torch.Tensor:
        return states + self.down(functional.relu(self.up(self.norm_2(states))))


class Decoder(nn.Module):
    """Embeddings, layers, a head that shares the embeddings' weights."""

    def __init__(self, shape: str) -> None:
        super().__init__()
        layers, width, heads = SHAPES[shape]
        self.tokens, self.positions = nn.Embedding(VOCABULARY, width), nn.Embedding(POSITIONS, width)
        self.layers = nn.ModuleList(Layer(width, heads) for _ in range(layers))
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, VOCABULARY, bias=False)
        self.head.weight = self.tokens.weight

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        """Mean loss of each token [rows, tokens] but the first, given those before it."""
        states = self.tokens(ids) + self.positions(torch.arange(ids.shape[1], device=ids.device))
        for layer in self.layers:
            states = layer(states)
        states = self.norm(states)[:, :-1].flatten(0, 1)
        return cross_entropy(states, self.head.weight, ids[:, 1:].flatten())
