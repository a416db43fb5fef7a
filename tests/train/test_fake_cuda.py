"""A whole zeroth-order step with everything on a CUDA device that is not there: nothing is left on another device."""

from __future__ import annotations

import copy
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorDeviceMismatchError
from torch.utils._python_dispatch import _disable_current_modes

from llava.mezo import MeZO, MeZOConfig, StepResult, reuse_outputs
from llava.mezo.kernels import torch_any
from llava.mezo.tables import PerturbedTable
from llava.train.mezo_trainer import frozen_image_modules
from llava.train.sparse_loss import sparse_loss

sys.path.insert(0, str(Path(__file__).parents[1] / "mezo"))
from fake_cuda import fake_cuda, move, on_fake_cuda
from test_sparse_loss import batch, build


@pytest.fixture(autouse=True)
def _tables() -> Iterator[None]:
    """A fake tensor cannot be a perturbed table at the same time, which is made of its values; and none is kept."""
    make = PerturbedTable.make

    def of_values(raw: Any, *rest: Any) -> PerturbedTable:
        with _disable_current_modes():
            return make(getattr(raw, "value", raw), *rest)

    with mock.patch.object(PerturbedTable, "make", staticmethod(of_values)):
        yield
    torch_any._table.cache_clear()


def one_step(model: torch.nn.Module, inputs: dict[str, Any], storage: str) -> StepResult:
    trained = [p for name, p in model.named_parameters() if "vision_tower" not in name]
    model.get_vision_tower().requires_grad_(False)
    optimizer = MeZO(trained, model, MeZOConfig(kernel="torch", num_directions=2, storage=storage), lr=1e-3)
    for _ in range(2):
        with reuse_outputs(frozen_image_modules(model)):
            optimizer.accumulate(0, lambda: sparse_loss(model, inputs))
    optimizer.step()
    assert optimizer.last is not None and optimizer.last.applied
    return optimizer.last


@pytest.mark.parametrize(("dtype", "storage"), [(torch.float32, "native"), (torch.bfloat16, "fixed16")])
@pytest.mark.parametrize("padding", ["right", "left"])
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
