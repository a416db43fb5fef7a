"""What a GPU would be given to do in a step, counted without one: launches of our kernels, and bytes of the weights."""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from typing import Any

import pytest
import torch
from torch import nn

from llava.mezo import MeZO, MeZOConfig, passes, trained, units
from llava.mezo.kernels.choice import available
from llava.mezo.kernels.interface import Part, Weight
from llava.mezo.kernels.torch_any import TorchTable
from llava.mezo.updates import Update
from llava.model import LlavaQwenConfig, LlavaQwenForCausalLM
from llava.train.parts.tunable import LANGUAGE_MODEL, PROJECTOR, VISION_TOWER, parse_parts, parts_of
from llava.train.zo.laid_out_forwards import laid_out_loss

pytestmark = pytest.mark.skipif(not available("triton"), reason="triton is not installed")
LAYERS, TOWER_LAYERS, WIDTH = 24, 26, 16


class Counter(TorchTable):
    """Computes with torch, and counts what the Triton kernel would launch; also the kernel that makes them."""

    name = "counting"

    def __init__(self) -> None:
        self.launches: dict[str, int] = {"perturb": 0, "look_up": 0, "update": 0}
        self.sizes: list[int] = []
        self.bytes = 0

    def table(self, weights: Sequence[Weight], noise: str) -> Counter:
        from llava.mezo.kernels.triton_cuda import TritonTable

        TorchTable.__init__(self, weights, noise)
        self.triton = TritonTable(weights, noise)
        return self

    def perturb(self, part: Part, copies: Mapping[int, torch.Tensor]) -> None:
        super().perturb(part, copies)
        self.launches["perturb"] += len(self.triton.part(part.pieces).prepared)
        for piece, dtype in zip(part.pieces, part.dtypes, strict=True):
            stored = self.weights[piece.index].value.element_size()
            self.bytes += piece.count * (stored + len(copies) * dtype.itemsize)
        self.sizes.append(len(part.pieces))

    def look_up(self, index: int, rows: torch.Tensor, copies: Mapping[int, torch.Tensor]) -> None:
        super().look_up(index, rows, copies)
        self.launches["look_up"] += 1

    def update(self, updates: Sequence[Update]) -> None:
        super().update(updates)
        self.launches["update"] += len(self.triton._all)
        self.bytes += sum(2 * weight.value.numel() * weight.value.element_size() for weight in self.weights)


def model_of(dtype: torch.dtype, parts: str) -> LlavaQwenForCausalLM:
    """As deep as 0.5b, and narrow."""
    tower = {
        "model_type": "siglip_vision_model",
        "hidden_size": WIDTH,
        "intermediate_size": 2 * WIDTH,
        "num_hidden_layers": TOWER_LAYERS + 1,
        "num_attention_heads": 2,
        "image_size": 16,
        "patch_size": 8,
    }
    config = LlavaQwenConfig(
        hidden_size=WIDTH,
        intermediate_size=4 * WIDTH,
        num_hidden_layers=LAYERS,
        num_attention_heads=4,
        num_key_value_heads=2,
        vocab_size=900,
        tie_word_embeddings=True,
        mm_vision_tower="small-siglip",
        mm_vision_tower_config=tower,
        mm_projector_type="mlp2x_gelu",
        mm_patch_merge_type="spatial_unpad",
    )
    model = LlavaQwenForCausalLM(config).to(dtype).eval()
    for part, _, parameter in parts_of(model):
        parameter.requires_grad_(part in parse_parts(parts))
    return model


def counted_step(
    parts: str, dtype: torch.dtype, storage: str, monkeypatch: pytest.MonkeyPatch
) -> tuple[Counter, nn.Module, int]:
    """A step of one direction; the counter, the model and how many weights were trained."""
    counter = Counter()
    monkeypatch.setattr(trained, "kernel_for", lambda name, device_type, noise: counter)
    monkeypatch.setattr(passes, "SIDE_BY_SIDE_ON", {"cpu"})  # as on a GPU
    monkeypatch.setattr(units, "LARGE_LAYER", 0)  # as if it were as wide as 0.5b, too
    model = model_of(dtype, parts)
    weights = [p for p in model.parameters() if p.requires_grad]
    ids = torch.randint(0, 900, (1, 9))
    ids[0, 1] = -200
    labels = torch.full_like(ids, -100)
    labels[0, -3:] = ids[0, -3:]
    images = torch.randn(1, 3, 16, 16)
    batch: dict[str, Any] = {"input_ids": ids, "labels": labels, "images": [images], "image_sizes": [(16, 16)]}
    optimizer = MeZO(weights, model, MeZOConfig(storage=storage), lr=1e-3)
    tensors = model.geometry.lay_out(batch).tensors() | {"images": images.to(dtype)}
    optimizer.accumulate(0, functools.partial(laid_out_loss, model), tensors)
    optimizer.step()
    assert optimizer.last is not None and optimizer.last.applied
    return counter, model, sum(p.numel() for p in weights)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("parts", "blocks"),
    [(LANGUAGE_MODEL, LAYERS), (f"{LANGUAGE_MODEL},{PROJECTOR},{VISION_TOWER}", LAYERS + TOWER_LAYERS)],
)
def test_launches_and_bytes_of_a_step(parts: str, blocks: int, monkeypatch: pytest.MonkeyPatch) -> None:
    counter, _, weights = counted_step(parts, torch.bfloat16, "native", monkeypatch)
    # two a block, and one for whatever stands alone: norm, newline, both layers of the projector, the tower's patches
    # and positions, chunks of the head
    assert counter.launches["perturb"] <= 2 * blocks + 16
    assert counter.launches["look_up"] == 2  # words, of either forward
    assert counter.launches["update"] <= 8
    assert counter.bytes <= 10 * weights


@pytest.mark.slow
@pytest.mark.parametrize(("dtype", "storage", "most"), [(torch.bfloat16, "fixed16", 10), (torch.float32, "native", 20)])
def test_other_ways_of_storing(dtype: torch.dtype, storage: str, most: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Vectors are kept in float32 where matrices are on a grid: another kind, and so another launch."""
    counter, _, weights = counted_step(LANGUAGE_MODEL, dtype, storage, monkeypatch)
    assert counter.launches["perturb"] <= 3 * LAYERS + 16
    assert counter.launches["update"] <= 8
    assert counter.bytes <= 1.02 * most * weights


@pytest.mark.slow
def test_without_side_by_side_a_weight_is_read_twice(monkeypatch: pytest.MonkeyPatch) -> None:
    """So that the counts above can fail."""
    monkeypatch.setattr("llava.mezo.passes.side_by_side", lambda: False)
    counter, _, weights = counted_step(LANGUAGE_MODEL, torch.bfloat16, "native", monkeypatch)
    assert counter.launches["perturb"] > 4 * LAYERS
    assert counter.bytes > 11.9 * weights
