"""How large the noise of each weight is."""

from __future__ import annotations

import json
import math
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from llava.mezo import MeZO, MeZOConfig
from llava.mezo.noise import direction_seed, direction_values
from llava.mezo.tensor_sizes import tensor_sizes


def sizes_of(kind: str) -> tuple[float, ...]:
    """Of a norm, a matrix that goes by two names, and a bias of zeros."""
    model = nn.Module()
    model.a, model.b, model.c = nn.Module(), nn.Module(), nn.Module()
    model.a.norm = nn.Parameter(torch.full((4,), 3.0))
    model.b.mlp = nn.Parameter(torch.ones(10, 20))
    model.c.bias, model.c.tied = nn.Parameter(torch.zeros(5)), model.b.mlp
    return tensor_sizes(kind, model, [model.a.norm, model.b.mlp, model.c.bias])


def test_norms_and_rms_keep_the_mean_square() -> None:
    norms, rms = sizes_of("norms"), sizes_of("rms")
    assert norms[0] / norms[1] == pytest.approx(6 / math.sqrt(200), rel=1e-3)
    assert rms[0] / rms[1] == pytest.approx(3, rel=1e-3)
    for sizes in (norms, rms):
        assert sizes[2] == 1  # of zeros
        assert (4 * sizes[0] ** 2 + 200 * sizes[1] ** 2) / 204 == pytest.approx(1, rel=1e-3)
    assert sizes_of("none") == ()


@pytest.mark.parametrize("storage", ["native", "fixed16", "fp32"])
@pytest.mark.parametrize("kind", ["norms", "rms"])
def test_sizes_are_those_of_the_weights_before_they_are_stored_elsewhere(kind: str, storage: str) -> None:
    torch.manual_seed(0)
    model = nn.Linear(4, 3).bfloat16()
    expected = tensor_sizes(kind, model, [model.weight, model.bias])
    optimizer = MeZO(model.parameters(), model, MeZOConfig(tensor_scales=kind, storage=storage))
    assert optimizer.sizes == tuple(expected[("weight", "bias").index(name)] for name in optimizer.names)
    assert all(math.isfinite(size) and size not in (0, 1) for size in optimizer.sizes)


@pytest.mark.parametrize("model", [nn.Linear(4, 3, device="meta"), nn.Linear(4, 3).double()], ids=["meta", "double"])
def test_weights_that_cannot_be_stored_are_refused_before_they_are_measured(model: nn.Module) -> None:
    with pytest.raises(ValueError, match="a trainable weight is"):
        MeZO(model.parameters(), model, MeZOConfig(tensor_scales="norms"))


def test_the_first_pattern_that_fits_counts(tmp_path: Path) -> None:
    file = tmp_path / "sizes.json"
    file.write_text(json.dumps({"*.norm": 10, "*.mlp": 2, "a.*": 3, "*bias": 1}))
    with pytest.raises(ValueError, match=r"'a\.\*' decides no trained weight"):
        sizes_of(str(file))
    file.write_text(json.dumps({"*.norm": 10, "*.tied": 2.5}))
    assert sizes_of(str(file)) == (10, 2.5, 1)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[1]", "a JSON object"),
        ("{}", "a JSON object"),
        ("{", "cannot be read"),
        ('{"a*": 0}', "the size of 'a*' is 0; it must be a number from 1e-09 to 1e+09"),
        ('{"a*": 1e300}', "the size of 'a*' is 1e+300"),
        ('{"a*": NaN}', "the size of 'a*' is nan"),
        ('{"a*": 2, "a*": 3}', "a pattern is there twice"),
    ],
)
def test_other_files_are_refused(text: str, message: str, tmp_path: Path) -> None:
    file = tmp_path / "sizes.json"
    file.write_text(text)
    with pytest.raises(ValueError, match=re.escape(message)):
        MeZOConfig(tensor_scales=str(file))


def test_weights_move_along_noise_of_their_size(tmp_path: Path) -> None:
    """Losses are taken and weights are moved along size * z, and a saved run goes on with its sizes."""
    file = tmp_path / "sizes.json"
    file.write_text(json.dumps({"bias": 8, "weight": 0.5}))
    torch.manual_seed(0)
    model = nn.Linear(6, 4)
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    config = MeZOConfig(tensor_scales=str(file), eps=0.25, seed=5)
    optimizer = MeZO(model.parameters(), model, config, lr=0.125)
    seen = []

    def loss() -> torch.Tensor:
        seen.append({"bias": model.bias.clone(), "weight": model.weight.clone()})
        return (model.weight.sum() + model.bias.sum()) * 2

    optimizer.accumulate(0, loss)
    optimizer.step()
    seed = direction_seed(5, 0, 0)
    assert optimizer.last is not None
    for number, (name, size) in enumerate((("bias", 8.0), ("weight", 0.5))):
        old = before[name].numpy().reshape(-1)
        z = direction_values(seed, number, 0, old.size, "gaussian")
        assert np.array_equal(seen[0][name].numpy().reshape(-1), old + np.float32(0.25 * size) * z)
        assert np.array_equal(seen[1][name].numpy().reshape(-1), old + np.float32(-0.25 * size) * z)
        factor = np.float32(np.float32(-0.125 * optimizer.last.projected_grad) * size)
        assert np.array_equal(dict(model.named_parameters())[name].detach().numpy().reshape(-1), old + factor * z)
    other = MeZO(model.parameters(), model, MeZOConfig(), lr=0.125)
    other.load_state_dict(optimizer.state_dict())
    assert other.sizes == optimizer.sizes == (8.0, 0.5)
