"""Projectors against the conformance data."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from llava.errors import InputError
from llava.model.multimodal_projector.builder import build_vision_projector
from llava.model.multimodal_resampler.builder import build_vision_resampler

PROJECTORS = json.loads((Path(__file__).parents[1] / "assets/golden/model/projectors.json").read_text())


@pytest.mark.parametrize("case", PROJECTORS["cases"], ids=lambda case: case["mm_projector_type"])
def test_projector(case, golden):
    arrays, name = np.load(golden / "model/projectors.npz"), case["mm_projector_type"]
    projector = build_vision_projector(SimpleNamespace(**case))
    shapes = {key: list(value.shape) for key, value in projector.state_dict().items()}
    assert shapes == case["state_dict"]
    projector.load_state_dict({key: torch.from_numpy(arrays[f"{name}__w__{key}"]) for key in shapes})
    with torch.no_grad():
        out = projector(torch.from_numpy(arrays[f"{name}__in"])).numpy()
    np.testing.assert_allclose(out, arrays[f"{name}__out"], atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("name", [name for name, _ in PROJECTORS["unknown_types"]] + ["mlp0x_gelu"])
def test_unknown_types_list_the_allowed_ones(name):
    with pytest.raises(InputError, match="allowed: linear, mlpNx_gelu"):
        build_vision_projector(SimpleNamespace(mm_projector_type=name, mm_hidden_size=4, hidden_size=4))


def test_linear_is_the_default():
    projector = build_vision_projector(SimpleNamespace(mm_hidden_size=4, hidden_size=3))
    assert isinstance(projector, torch.nn.Linear)


def test_pooler_needs_a_square():
    projector = build_vision_projector(SimpleNamespace(mm_projector_type="pooler", mm_hidden_size=4, hidden_size=3))
    with pytest.raises(InputError, match="square"):
        projector(torch.zeros(1, 5, 4))


def test_resamplers_are_refused():
    assert build_vision_resampler(SimpleNamespace(mm_resampler_type=None)) is not None
    with pytest.raises(InputError, match="'qformer' is not supported"):
        build_vision_resampler(SimpleNamespace(mm_resampler_type="qformer"))
