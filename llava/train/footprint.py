"""The memory of a step, counted: bytes of weights, gradients, masters, optimizer states and activations by method.

Sizes are read off the model itself, built on torch's meta device, where parameters have a shape and no memory. What an
allocator, a framework and CUDA's context take on top is not counted. `python -m llava.train.plan` shows it.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from llava.mezo.head import chunk_rows
from llava.train.parts.adapters import find_all_linear_names
from llava.train.parts.lean_adapters import TILE
from llava.train.parts.tunable import LANGUAGE_MODEL, PROJECTOR, VISION_TOWER, parts_of, vision_modules

HALF, SINGLE = 2, 4
"""Bytes of a number in bfloat16 and in float32."""
NF4 = 0.5 + 1 / 64 + SINGLE / (64 * 256)
"""Bytes of a weight in 4 bits: two a byte, a scale of 8 bits for 64 of them, a scale of those for 256 (Dettmers et al.
2023, "QLoRA", section 3)."""


@dataclass(frozen=True)
class Sizes:
    """Numbers of weights, and widths that activations depend on."""

    parts: dict[str, int]
    """Weights by part (`llava.train.parts.tunable`)."""
    linears: tuple[tuple[int, int], ...]
    """(in, out) of each linear layer of the language model but the head."""
    matrices: dict[str, tuple[tuple[int, ...], ...]]
    """Shapes of all weights by part."""
    layer: int
    """Weights of one layer of the language model."""
    table: int
    """Weights of the embedding table."""
    layers: int
    width: int
    inner: int
    """Width inside the MLP."""
    queries: int
    keys: int
    """Width of the keys, and of the values."""
    vocabulary: int
    tower_layers: int
    tower_width: int
    tower_inner: int
    patches: int
    """Of a tile."""

    @property
    def weights(self) -> int:
        """Of the whole model, shared ones once."""
        return sum(self.parts.values())

    def trained(self, parts: Collection[str]) -> int:
        """Weights of these parts."""
        return sum(self.parts.get(part, 0) for part in parts)

    def shapes(self, parts: Collection[str]) -> list[tuple[int, ...]]:
        """Those of all weights of these parts."""
        return [shape for part in parts for shape in self.matrices.get(part, ())]

    def lora(self, rank: int) -> int:
        """Weights of LoRA on every linear layer of the language model: rank x (in + out) each."""
        return sum(math.prod(shape) for shape in self.lora_matrices(rank))

    def lora_matrices(self, rank: int) -> list[tuple[int, int]]:
        """Shapes of these."""
        return [shape for into, out in self.linears for shape in ((rank, into), (out, rank))]


def sizes_of(model: nn.Module) -> Sizes:
    """Of a LLaVA model, which may lie on the meta device."""
    config: Any = model.config
    shapes: dict[str, list[tuple[int, ...]]] = {part: [] for part in (LANGUAGE_MODEL, PROJECTOR, VISION_TOWER)}
    for part, _, parameter in parts_of(model):
        shapes[part].append(tuple(parameter.shape))
    vision = {id(m) for module in vision_modules(model).values() for m in module.modules()}
    names = find_all_linear_names(model)
    adapted = [
        (module.in_features, module.out_features)
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear) and id(module) not in vision and name.split(".")[-1] in names
    ]
    inner: Any = model
    layers = inner.get_model().layers
    attention = layers[0].self_attn
    tower: Any = vision_modules(model).get(VISION_TOWER)
    of_tower = tower.config if tower is not None else None
    return Sizes(
        parts={part: sum(math.prod(shape) for shape in found) for part, found in shapes.items()},
        linears=tuple(adapted),
        matrices={part: tuple(found) for part, found in shapes.items()},
        layer=sum(parameter.numel() for parameter in layers[0].parameters()),
        table=config.vocab_size * config.hidden_size,
        layers=len(layers),
        width=config.hidden_size,
        inner=config.intermediate_size,
        queries=attention.q_proj.out_features,
        keys=attention.k_proj.out_features,
        vocabulary=config.vocab_size,
        tower_layers=0 if of_tower is None else of_tower.num_hidden_layers - 1,
        tower_width=0 if of_tower is None else of_tower.hidden_size,
        tower_inner=0 if of_tower is None else of_tower.intermediate_size,
        patches=0 if tower is None else tower.num_patches,
    )


@dataclass(frozen=True)
class Batch:
    """rows x tokens positions after images are put in, tiles of pictures in each row, supervised positions of a row."""

    rows: int = 1
    tokens: int = 1500
    tiles: int = 2
    supervised: int = 12

    @property
    def positions(self) -> int:
        """Of all rows."""
        return self.rows * self.tokens

    @property
    def patches(self) -> int:
        """Tiles of all rows."""
        return self.rows * self.tiles


def forward_bytes(sizes: Sizes, batch: Batch) -> float:
    """The most that a forward holds at once without a graph: one layer's MLP, or the tower's, or the logits.

    Of a position the residual stream, in float32 too while it is normalised, and three inner rows of the MLP.
    """
    of_layer = HALF * 2 * sizes.width + SINGLE * sizes.width + HALF * 3 * sizes.inner
    language = batch.positions * of_layer
    of_patch = HALF * (3 * sizes.tower_width + 2 * sizes.tower_inner)
    vision = batch.patches * sizes.patches * of_patch
    return max(language, vision) + logits_bytes(sizes, batch)


def logits_bytes(sizes: Sizes, batch: Batch) -> float:
    """Of the supervised positions alone, in bfloat16 and in float32.

    A chunk of the vocabulary is there at a time, on a card, with a graph and without (`llava.model.chunked_loss`,
    `llava.mezo.head`).
    """
    positions = batch.rows * batch.supervised
    head = torch.empty(sizes.vocabulary, sizes.width, dtype=torch.bfloat16, device="meta")
    words = min(sizes.vocabulary, chunk_rows(head, positions))
    return words * positions * (HALF + SINGLE)


def layer_activations(sizes: Sizes, batch: Batch, at_once: float = math.inf) -> float:
    """What one layer of the language model keeps for its backward pass; its MLP, of so many positions at a time.

    Of a position, in bytes: each of the two norms its input in float32 and its result (4 + 2 widths), the inputs of
    the projections (2 x 2 widths), queries, keys, values before and behind their rotation's product and attention's
    result, and four inner rows of the MLP (gate, its activation, up, product). Attention keeps no matrix of scores.
    """
    norms = 2 * (SINGLE + HALF) * sizes.width
    projections = HALF * 2 * sizes.width
    attention = HALF * (2 * sizes.queries + 2 * sizes.keys)
    inner = min(batch.positions, at_once) * HALF * 4 * sizes.inner
    return batch.positions * (norms + projections + attention) + inner


def tower_activations(sizes: Sizes, batch: Batch) -> float:
    """What one layer of the tower keeps for its backward pass: two norms, attention, two inner rows of the MLP."""
    of_patch = HALF * (2 * sizes.tower_width * 2 + 4 * sizes.tower_width + 2 * sizes.tower_inner)
    return batch.patches * sizes.patches * of_patch


def lora_activations(sizes: Sizes, batch: Batch, at_once: float = math.inf) -> float:
    """What LoRA keeps besides in one layer: a dropped-out copy and a mask of each linear layer's input."""
    of_attention, of_mlp = 3 * sizes.width + sizes.queries, 2 * sizes.width + sizes.inner
    return (batch.positions * of_attention + min(batch.positions, at_once) * of_mlp) * (HALF + 1)


def graph_bytes(sizes: Sizes, batch: Batch, checkpointing: bool, lora: bool, tower: bool) -> float:
    """All activations that a backward pass needs, at the time when they are most.

    Args:
        checkpointing: each layer keeps its input alone, and its other activations are made again, a layer at a time
            (Chen et al. 2016); of LoRA's MLPs a tile at a time (`llava.train.parts.lean_adapters`).
        tower: whether gradients go through the vision tower, which is not checkpointed.
    """
    at_once = TILE if lora and checkpointing else math.inf
    of_layer = layer_activations(sizes, batch, at_once) + (lora_activations(sizes, batch, at_once) if lora else 0)
    inputs = batch.positions * HALF * sizes.width
    language = sizes.layers * inputs + of_layer if checkpointing else sizes.layers * of_layer
    vision = sizes.tower_layers * tower_activations(sizes, batch) if tower else 0.0
    return language + vision + logits_bytes(sizes, batch) + SINGLE * batch.rows * batch.supervised * sizes.width


def adafactor_states(shapes: Iterable[Sequence[int]]) -> int:
    """Bytes of Adafactor's second moments: a row and a column a matrix (Shazeer and Stern 2018), vectors whole."""
    numbers = sum(
        math.prod(shape) // shape[-1] + math.prod(shape) // shape[-2] if len(shape) > 1 else shape[0]
        for shape in shapes
    )
    return SINGLE * numbers


def largest(shapes: Iterable[Sequence[int]]) -> int:
    """Weights of the largest of these tensors."""
    return max(math.prod(shape) for shape in shapes)
