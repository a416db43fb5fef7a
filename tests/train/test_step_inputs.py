"""The tensors of a step: which modules have run, in what, and where features that are known come from."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
import torch
from test_sparse_loss import batch, build
from torch.utils.data._utils.pin_memory import pin_memory

from llava.mezo import MeZO, MeZOConfig
from llava.samples.batch import Batch
from llava.train.parts.feature_cache import FeatureCache, TileFeatures, tile_features
from llava.train.zo.laid_out_forwards import laid_out_loss
from llava.train.zo.step_inputs import StepInputs


def made(trained: tuple[str, ...] = ("layers",), dtype: torch.dtype = torch.float32, **settings: Any) -> Any:
    """A model of which the parameters with these words in their names are trained, and its `MeZO`."""
    model = build("llava_qwen", **settings).to(dtype)
    chosen = [p for n, p in model.named_parameters() if any(w in n for w in trained) and "vision_tower.vision" not in n]
    for parameter in model.parameters():
        parameter.requires_grad_(any(parameter is p for p in chosen))
    return model, MeZO(chosen, model, MeZOConfig())


class Remembered:
    """Features by what their tiles add up to."""

    def __init__(self) -> None:
        self.features: dict[float, torch.Tensor] = {}

    def find(self, tiles: torch.Tensor) -> torch.Tensor | None:
        return self.features.get(float(tiles.sum()))

    def keep(self, tiles: torch.Tensor, features: torch.Tensor) -> None:
        self.features[float(tiles.sum())] = features.clone()


@pytest.mark.parametrize(
    ("trained", "name"),
    [(("layers",), "vectors"), (("layers", "mm_projector"), "tower_features"), (("vision_tower", "layers"), "images")],
)
def test_frozen_modules_run_once_a_batch_and_the_loss_is_the_same(trained: tuple[str, ...], name: str) -> None:
    model, mezo = made(trained)
    if name == "images":
        for parameter in model.get_vision_tower().parameters():
            parameter.requires_grad_(True)
    inputs = batch("right", images=True)
    tensors = StepInputs(model, mezo, 64)(inputs)
    assert tensors is not None
    assert set(tensors) == {"words", "source", "positions", "targets", name}
    frozen, frozen_mezo = made()
    expected = StepInputs(frozen, frozen_mezo, 64)(inputs)
    with torch.no_grad():
        assert laid_out_loss(model, tensors) == laid_out_loss(frozen, expected)


def test_rows_are_padded_to_buckets_on_cuda_alone() -> None:
    model, mezo = made()
    inputs = batch("right", images=True)
    tensors = StepInputs(model, mezo, 64)(inputs)
    assert tensors["source"].shape[1] % 64 != 0
    mezo.device = torch.device("cuda")
    assert StepInputs(model, mezo, 64).bucket == 64


def test_a_video_needs_a_frozen_projector(caplog: pytest.LogCaptureFixture) -> None:
    inputs = batch("right", images=True)
    inputs["modalities"][1] = "video"
    model, mezo = made(("layers", "mm_projector"), mm_newline_position="grid")
    with caplog.at_level("INFO"):
        step_inputs = StepInputs(model, mezo, 1)
        assert step_inputs(inputs) is None
        assert step_inputs(inputs) is None
    assert caplog.text.count("run without a layout where the projector is trained") == 1
    model, mezo = made(mm_newline_position="grid")
    assert StepInputs(model, mezo, 1)(inputs) is not None


@pytest.mark.parametrize("trained", [("layers",), ("layers", "mm_projector")])
def test_features_that_the_batch_brings_are_used_and_others_are_kept(trained: tuple[str, ...]) -> None:
    model, mezo = made(trained)
    inputs, known = batch("right", images=True), Remembered()
    plain = StepInputs(model, mezo, 1)(inputs)
    step_inputs = StepInputs(model, mezo, 1, known)
    first = step_inputs(inputs)
    assert (step_inputs.hits, step_inputs.misses) == (0, 6)
    inputs["features"] = [known.find(inputs["images"][0]), None, known.find(inputs["images"][2])]
    assert inputs["features"][0] is not None
    second = step_inputs(inputs)
    assert (step_inputs.hits, step_inputs.misses) == (3, 9)
    for name in plain:
        torch.testing.assert_close(first[name], plain[name], rtol=0, atol=0)
        torch.testing.assert_close(second[name], plain[name], rtol=1e-5, atol=1e-6)  # other tiles beside one another
    inputs["features"] = [known.find(image) for image in inputs["images"]]
    model.get_vision_tower().forward = None  # nothing is left to encode
    step_inputs(inputs)
    assert (step_inputs.hits, step_inputs.misses) == (9, 9)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_cache_knows_tiles_in_the_dtype_that_the_tower_reads(dtype: torch.dtype, tmp_path: Path) -> None:
    model, _ = made(dtype=dtype)
    features = tile_features(model, str(tmp_path), 1.0)
    assert features is not None
    tiles = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        computed = model.encode_images(tiles.to(dtype))
    assert features.find(tiles) is None
    features.keep(tiles.to(dtype), computed)
    for there in (features, pickle.loads(pickle.dumps(features))):  # as a data loader's process has it
        assert torch.equal(there.find(tiles), computed)
        assert there.find(torch.cat([tiles, torch.randn(1, 3, 32, 32)])) is None


def test_other_weights_are_another_entry(tmp_path: Path) -> None:
    cache, tiles = FeatureCache(tmp_path, 2**20), torch.randn(1, 3, 8, 8)
    modules = [torch.nn.Linear(2, 2), torch.nn.Linear(2, 2)]
    one, other = (TileFeatures([module], cache) for module in modules)
    one.keep(tiles, torch.ones(1, 4))
    assert one.find(tiles) is not None
    assert other.find(tiles) is None


def test_a_batch_travels_as_one_tensor() -> None:
    """And arrives with the same values, dtypes and shapes."""
    sent = Batch(
        input_ids=torch.arange(6).view(2, 3),
        mask=torch.tensor([True, False]),
        images=[torch.randn(2, 3), torch.randn(1, 2, 3).bfloat16(), torch.zeros(0, 2)],
        features=[None, torch.ones(3)],
        sizes=[(1, 2), (3, 4)],
    )
    function, (together, values) = sent.__reduce__()
    assert together.dtype == torch.uint8
    assert together.is_shared()
    assert not any(isinstance(v, torch.Tensor) for value in values.values() for v in [value, *value])
    arrived = function(together, values)
    assert type(arrived) is Batch
    assert list(arrived) == list(sent)
    assert arrived["sizes"] == sent["sizes"]
    for name in ("input_ids", "mask", "images", "features"):
        torch.testing.assert_close(arrived[name], sent[name], rtol=0, atol=0)
    sent["images"][0].zero_()
    assert arrived["images"][0].any()


def test_a_batch_is_pinned_tensor_by_tensor() -> None:
    with mock.patch.object(torch.Tensor, "pin_memory", lambda tensor, device=None: tensor + 1):
        pinned = pin_memory(Batch(ids=torch.zeros(2), images=[torch.zeros(1)], sizes=[(1, 2)]))
    assert type(pinned) is Batch
    assert (pinned["ids"].tolist(), pinned["images"][0].tolist(), pinned["sizes"]) == ([1.0, 1.0], [1.0], [(1, 2)])


def test_a_data_loaders_process_sends_what_was_collated() -> None:
    def collate(numbers: list[int]) -> Batch:
        return Batch(images=[torch.full((2, n + 1), float(n)) for n in numbers], ids=torch.tensor(numbers))

    batches = list(torch.utils.data.DataLoader(range(4), 2, collate_fn=collate, num_workers=1))
    assert [batch["ids"].tolist() for batch in batches] == [[0, 1], [2, 3]]
    assert [image.shape[1] for batch in batches for image in batch["images"]] == [1, 2, 3, 4]
    assert batches[1]["images"][1].tolist() == [[3.0] * 4] * 2
