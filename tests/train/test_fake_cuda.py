"""A whole zeroth-order step with everything on a CUDA device that is not there: nothing is left on another device."""

from __future__ import annotations

import copy
import functools
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorDeviceMismatchError

from llava.mezo import MeZO, MeZOConfig, StepResult, measuring, reuse_outputs
from llava.mezo.answer_tree import AnswerTree
from llava.mezo.head import IGNORED, cross_entropy
from llava.mezo.kernels import torch_any
from llava.mezo.kernels.interface import Piece, Weight
from llava.mezo.offloading.optimizer import OffloadedMeZO
from llava.mezo.tables import PerturbedTable
from llava.train.zo.image_modules import frozen_image_modules
from llava.train.zo.laid_out_forwards import laid_out_loss
from llava.train.zo.sparse_loss import Measure, sparse_loss

sys.path.insert(0, str(Path(__file__).parents[1] / "mezo"))
sys.path.insert(0, str(Path(__file__).parents[2] / "scripts" / "benchmark"))
from fake_cuda import DeviceReadError, fake_cuda, move, on_fake_cuda, refusing_reads, tables_of_values
from fake_device import Table
from test_sparse_loss import batch, build


@pytest.fixture(autouse=True)
def _tables() -> Iterator[None]:
    with tables_of_values():
        yield


@pytest.fixture(autouse=True)
def _random_bits_once() -> Iterator[None]:
    """Every call with other arguments computes; a repeated one, as in the second half of a batch, would be the same."""
    make, known = torch_any._bits, {}

    def bits(seed: int, weight: Weight, stream: int, chunk: Piece) -> torch.Tensor:
        where = type(weight.value), weight.value.device
        key = (seed, weight.number, weight.first, *where, stream, chunk.start, chunk.count)
        if key not in known:
            known[key] = make(seed, weight, stream, chunk)
        return known[key]

    with mock.patch.object(torch_any, "_bits", bits):
        yield


def prepared(model: torch.nn.Module, storage: str) -> MeZO:
    trained = [p for name, p in model.named_parameters() if "vision_tower" not in name]
    model.get_vision_tower().requires_grad_(False)
    return MeZO(trained, model, MeZOConfig(kernel="torch", num_directions=2, storage=storage), lr=1e-3)


def one_step(model: torch.nn.Module, inputs: dict[str, Any], storage: str) -> StepResult:
    optimizer = prepared(model, storage)
    for _ in range(2):
        with reuse_outputs(frozen_image_modules(model)):
            optimizer.accumulate(0, lambda: sparse_loss(model, inputs))
    optimizer.step()
    assert optimizer.last is not None and optimizer.last.applied
    return optimizer.last


def laid_out_step(
    optimizer: MeZO, model: torch.nn.Module, tensors: dict[str, torch.Tensor], measure: Measure = cross_entropy
) -> StepResult:
    loss = functools.partial(laid_out_loss, model, measure=measure)
    for _ in range(2):
        optimizer.accumulate(0, loss, tensors)
    optimizer.step()
    assert optimizer.last is not None and optimizer.last.applied
    return optimizer.last


@pytest.mark.slow
@pytest.mark.parametrize(
    ("padding", "dtype", "storage"),
    [pytest.param("right", torch.float32, "native", marks=pytest.mark.long), ("left", torch.bfloat16, "fixed16")],
)
def test_a_step_stays_on_its_device_and_gives_the_same_numbers(padding: str, dtype: torch.dtype, storage: str) -> None:
    settings = {"attn_implementation": "eager", "tokenizer_padding_side": padding}
    model, inputs = build("llava_qwen", **settings).to(dtype), batch(padding, images=True)
    expected = one_step(copy.deepcopy(model), inputs, storage)
    with fake_cuda() as mode:
        move(model)
        result = one_step(model, on_fake_cuda(inputs), storage)
    assert mode.operations > 1000
    assert result == expected


def test_a_tensor_that_is_left_behind_is_found() -> None:
    """So that the test above can fail."""
    model, inputs = build("llava_qwen", attn_implementation="eager"), batch("right", images=True)
    with fake_cuda():
        move(model)
        moved = on_fake_cuda(inputs)
        model.model.image_newline = torch.nn.Parameter(torch.zeros(32))
        with pytest.raises(FakeTensorDeviceMismatchError):
            one_step(model, moved, "native")


@contextmanager
def reading_losses_alone() -> Iterator[list[int]]:
    """Nothing may wait for the device but the reading of losses; how many were read each time."""
    counts: list[int] = []
    original = measuring.as_floats
    with refusing_reads() as reads:

        def read(losses: Sequence[float | torch.Tensor]) -> list[float]:
            counts.append(len(losses))
            reads.allowed = True
            try:
                return original(losses)
            finally:
                reads.allowed = False

        with mock.patch.object(measuring, "as_floats", read):
            yield counts


@pytest.mark.slow
@pytest.mark.parametrize(
    ("vision", "dtype", "storage", "among_answers"),
    [("frozen", torch.bfloat16, "fixed16", True), ("trained projector", torch.float32, "native", False)],
)
def test_a_step_does_not_wait_for_the_device_before_it_reads_the_losses(
    vision: str, dtype: torch.dtype, storage: str, among_answers: bool
) -> None:
    model, inputs = build("llava_qwen", attn_implementation="eager").to(dtype), batch("right", images=True)
    tensors = model.geometry.lay_out(inputs, 8).tensors()
    pixels = torch.cat(inputs["images"]).to(dtype)
    with torch.no_grad():
        if vision == "frozen":
            tensors["vectors"] = model.encode_images(pixels).flatten(0, 1)
        else:
            tensors["tower_features"] = model.get_vision_tower()(pixels).contiguous()
    measure: Measure = cross_entropy
    if among_answers:
        tree = AnswerTree([[token] for token in set(tensors["targets"].tolist()) - {IGNORED}])
        tensors["targets"], measure = tree.places(tensors["targets"]), tree.loss
    twin = copy.deepcopy(model)
    expected = laid_out_step(prepared(twin, storage), twin, tensors, measure)
    with fake_cuda():
        move(model)
        tensors, optimizer = on_fake_cuda(tensors), prepared(model, storage)
        if among_answers:
            vars(tree).update(on_fake_cuda({name: vars(tree)[name] for name in ("_tokens", "_allowed")}))
        with reading_losses_alone() as counts:
            result = laid_out_step(optimizer, model, tensors, measure)
    assert counts == [4, 4]
    assert result == expected


@pytest.mark.slow
@pytest.mark.parametrize(
    ("estimator", "more", "reads"),
    [
        ("guided", {"num_directions": 3}, [3, 2, 3, 2]),  # where to measure further follows from what is read
        ("svrg", {"anchor_steps": 2}, [2, 4]),
        pytest.param("fzoo", {"num_directions": 3, "noise": "rademacher"}, [4, 4], marks=pytest.mark.long),
        pytest.param("lowrank", {}, [2, 2], marks=pytest.mark.long),
        pytest.param("one_point", {}, [1, 1], marks=pytest.mark.long),
    ],
)
def test_no_estimator_waits_for_the_device_before_it_reads_losses(
    estimator: str, more: dict[str, Any], reads: list[int]
) -> None:
    model, inputs = build("llava_qwen", attn_implementation="eager"), batch("right", images=True)
    tensors = model.geometry.lay_out(inputs, 8).tensors()
    tensors["vectors"] = model.encode_images(torch.cat(inputs["images"])).flatten(0, 1).detach()
    config = MeZOConfig(kernel="torch", estimator=estimator, **more)

    def steps(model: torch.nn.Module, tensors: dict[str, torch.Tensor]) -> list[StepResult]:
        trained = [p for name, p in model.named_parameters() if "layers.0" in name and "vision_tower" not in name]
        optimizer, found = MeZO(trained, model, config, lr=1e-3), []
        for step in range(2):
            optimizer.accumulate(step, functools.partial(laid_out_loss, model), tensors)
            optimizer.step()
            assert optimizer.last is not None and optimizer.last.applied
            found.append(optimizer.last)
        return found

    expected = steps(copy.deepcopy(model), tensors)
    with fake_cuda():
        move(model)
        tensors = on_fake_cuda(tensors)
        with reading_losses_alone() as counts:
            result = steps(model, tensors)
    assert counts == reads
    assert result == expected


@torch.no_grad()
def test_the_frozen_first_layers_do_not_wait_for_the_device() -> None:
    model, inputs = build("llava_qwen", attn_implementation="eager"), batch("right", images=True)
    tensors = model.geometry.lay_out(inputs, 8).tensors()
    tensors["vectors"] = model.encode_images(torch.cat(inputs["images"])).flatten(0, 1)
    expected = laid_out_loss(model, tensors)
    with fake_cuda():
        move(model)
        tensors = on_fake_cuda(tensors)
        with refusing_reads():
            tensors["states"] = model.laid_out_beginning(tensors, 1)
            loss = laid_out_loss(model, tensors, begun=1)
        assert loss.device.type == "cuda"
        (found,) = measuring.as_floats([loss])
    assert found == float(expected)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("trained", "storage"), [pytest.param("model", "fixed16", marks=pytest.mark.long), ("mm_projector", "native")]
)
def test_weights_on_the_host_are_read_on_the_device(trained: str, storage: str) -> None:
    """Every read of a model that stays on the host, of frozen weights and buffers too, is of the device."""
    model, inputs = build("llava_qwen", attn_implementation="eager").to(torch.bfloat16), batch("right", images=True)
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(trained in name)
    tensors = {**model.geometry.lay_out(inputs, 8).tensors(), "images": torch.cat(inputs["images"]).bfloat16()}
    twin, config = copy.deepcopy(model), MeZOConfig(kernel="torch", storage=storage)
    chosen = [p for p in twin.parameters() if p.requires_grad]
    expected = MeZO(chosen, twin, config).accumulate(0, functools.partial(laid_out_loss, twin), tensors)
    torch_any._quantiles.cache_clear()  # its host is another one
    with fake_cuda(), mock.patch.object(PerturbedTable, "make", staticmethod(Table)):
        move(model, "cpu")
        chosen = [p for p in model.parameters() if p.requires_grad]
        optimizer = OffloadedMeZO(chosen, model, config, device=torch.device("cuda"))
        loss = optimizer.accumulate(0, functools.partial(laid_out_loss, model), on_fake_cuda(tensors))
    assert loss == expected


def test_a_step_that_waits_is_found() -> None:
    """So that the test above can fail: the model's own forward asks for the lengths of texts and images."""
    model, inputs = build("llava_qwen", attn_implementation="eager"), batch("right", images=True)
    with fake_cuda():
        move(model)
        inputs = on_fake_cuda(inputs)
        with pytest.raises(DeviceReadError), reading_losses_alone():
            one_step(model, inputs, "native")
