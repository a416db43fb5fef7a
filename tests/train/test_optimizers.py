"""Every `--optim` with every precision: three steps; a run that goes on after two has the weights of the unbroken."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import pytest
import torch
from finished_runs import report_of, same, weights
from safetensors.torch import load_file

from llava.errors import InputError
from llava.train.flags.parsing import parse_arguments
from llava.train.llava_trainer import LLaVATrainer
from llava.train.parts import lean_adapters
from llava.train.parts.fused_optimizers import FUSED
from llava.train.parts.optimizers import EIGHT_BITS, GALORE, OPTIMIZERS, make_contiguous
from llava.train.train import train

Flags = Callable[..., list[str]]
PRECISIONS: dict[str, dict[str, bool]] = {
    "float32": {"bf16": False},
    "bf16": {"bf16": True},
    "fp16": {"bf16": False, "fp16": True},
}
RATES = {"lomo": 0.1, "adalomo": 1e-2, "sgd": 0.1}
"""Those that move bfloat16 weights without masters, or need more than Adam's."""
ROUNDING = {"float32": 0.15, "bf16": 0.5, "fp16": 0.3}
"""How far apart two ways to one step may be, of its length: a gradient that is 0 but for rounding, as of all biases of
keys, is a whole step of Adam's."""

pytestmark = pytest.mark.usefixtures("no_picture_of_the_loss")


@pytest.fixture
def words(flags: Flags, small_tower_folder: Path) -> Flags:
    """Command line of three steps of all parts of the smallest model, with a checkpoint after two."""

    def make(optim: str, **changes: Any) -> list[str]:
        values: dict[str, Any] = {
            "vision_tower": small_tower_folder,
            "mm_tunable_parts": "mm_vision_tower,mm_mlp_adapter,mm_language_model",
            "optim": optim,
            "learning_rate": RATES.get(optim, 1e-3),
            "per_device_train_batch_size": 2,
            "max_steps": 3,
            "save_steps": 2,
            "logging_steps": 1,
            "disable_tqdm": True,
            "optim_target_modules": ".*q_proj" if optim in GALORE else None,
            "optim_args": "rank=4,update_proj_gap=2" if optim in GALORE else None,
        }
        return flags(**values | changes)

    return make


def run_and_resume(words: Flags, tmp_path: Path, optim: str, **changes: Any) -> dict[str, Any]:
    """The report of a whole run, whose weights are those of one that was broken off after two steps."""
    train(argv=words(optim, output_dir=tmp_path / "whole", **changes))
    shutil.copytree(tmp_path / "whole" / "checkpoint-2", tmp_path / "half" / "checkpoint-2")
    train(argv=words(optim, output_dir=tmp_path / "half", **changes))
    whole, before = weights(tmp_path / "whole"), weights(tmp_path / "whole" / "checkpoint-2", "model.safetensors")
    assert same(whole, weights(tmp_path / "half"))
    moved = {name for name in whole if not torch.equal(whole[name], before[name])}
    assert moved >= {f"model.layers.{n}.mlp.up_proj.weight" for n in (0, 1)} and len(moved) > 20
    assert all(bool(w.isfinite().all()) for w in whole.values())
    return report_of(tmp_path / "whole")


USUAL = {
    ("adamw_torch", "bf16"),
    ("adamw_torch", "fp16"),
    ("lomo", "bf16"),
    ("adalomo", "bf16"),
    ("galore_adamw", "bf16"),
}
"""What is always tested; the rest takes minutes."""
COMBINATIONS = [
    pytest.param(optim, precision, marks=() if (optim, precision) in USUAL else pytest.mark.long)
    for optim in OPTIMIZERS
    for precision in PRECISIONS
]


@pytest.mark.parametrize(
    ("changes", "rate"),
    [
        ({"optim": "adalomo"}, 1e-3),
        ({"optim": "lomo"}, 1e-2),
        ({"optim": "adalomo", "learning_rate": 1e-5}, 1e-5),
        ({"optim": "lomo", "adapter": "pissa", "mm_tunable_parts": "mm_language_model"}, 1e-4),
        ({}, 5e-5),
    ],
)
def test_optimizers_inside_the_backward_pass_have_a_rate_of_their_own(
    changes: dict[str, Any], rate: float, flags: Flags
) -> None:
    args = parse_arguments(flags(**changes))[2]
    assert args.learning_rate == rate and (args.max_grad_norm == 0) == ("optim" in changes)


@pytest.mark.parametrize(("precision", "fused"), [("float32", True), ("bf16", True), ("fp16", False)])
def test_a_step_of_adamw_is_fused_unless_losses_are_scaled(precision: str, fused: bool, flags: Flags) -> None:
    kind, options = LLaVATrainer.get_optimizer_cls_and_kwargs(parse_arguments(flags(**PRECISIONS[precision]))[2])
    assert kind is torch.optim.AdamW and options.get("fused", False) == fused


def test_moments_that_are_loaded_lie_as_the_weights_that_they_are_of() -> None:
    """A fused step over a transposed view takes one weight's moment for another's, once moments have been loaded."""

    def step(model: torch.nn.Linear, state: dict[str, Any] | None) -> dict[str, Any]:
        optimizer = torch.optim.AdamW(model.parameters(), lr=0.1, fused=True)
        if state is not None:
            optimizer.load_state_dict(state)
        (model.weight * torch.arange(6.0).view(3, 2)).sum().backward()
        optimizer.step()
        model.zero_grad()
        state = optimizer.state_dict()
        for moments in state["state"].values():
            moments.update({name: tensor.contiguous() for name, tensor in moments.items()})  # as files have them
        return state

    one, other = (torch.nn.Linear(2, 3, bias=False) for _ in range(2))
    one.weight.data = torch.ones(2, 3).t()
    other.weight.data = torch.ones(3, 2)
    make_contiguous(one)
    assert one.weight.is_contiguous() and torch.equal(one.weight, other.weight)
    for model in (one, other):
        step(model, step(model, None))
    assert torch.equal(one.weight, other.weight)


@pytest.mark.slow
@pytest.mark.parametrize(("optim", "precision"), COMBINATIONS)
def test_three_steps_and_a_run_that_goes_on(optim: str, precision: str, words: Flags, tmp_path: Path) -> None:
    if optim in FUSED and precision == "fp16":
        with pytest.raises(InputError, match=rf"--optim {optim} excludes --fp16 True"):
            parse_arguments(words(optim, **PRECISIONS[precision]))
        return
    report = run_and_resume(words, tmp_path, optim, **PRECISIONS[precision])
    assert report["steps"] == 3 and 0 < report["final_loss"] < 20


@pytest.mark.slow
@pytest.mark.parametrize(("optim", "precision"), COMBINATIONS)
def test_checkpointed_layers_and_accumulated_batches(optim: str, precision: str, words: Flags, tmp_path: Path) -> None:
    """Either changes a step by rounding alone; where that decides the sign of a gradient, it decides Adam's step."""
    fused = optim in FUSED
    if fused and precision == "fp16":
        pytest.skip("refused")
    plain = {"save_strategy": "no", "max_steps": 1, **PRECISIONS[precision]}
    given = words(optim, output_dir=tmp_path / "plain", **plain)
    train(argv=given)
    parts = {} if fused else {"per_device_train_batch_size": 1, "gradient_accumulation_steps": 2}
    train(argv=words(optim, output_dir=tmp_path / "parts", gradient_checkpointing=True, **plain, **parts))
    before = weights(Path(given[given.index("--model_name_or_path") + 1]))
    expected, found = weights(tmp_path / "plain"), weights(tmp_path / "parts")
    layers = [name for name in expected if ".layers." in name and name in before]
    moved, apart = (
        sum(float((one[name].float() - other[name].float()).square().sum()) for name in layers)
        for one, other in ((expected, before), (found, expected))
    )
    assert layers and moved > 0
    assert apart < ROUNDING[precision] ** 2 * moved


@pytest.mark.slow
@pytest.mark.parametrize("optim", ("adamw_torch", "sgd", "adalomo", "adamw_8bit"))
def test_an_adapter_with_any_optimizer(
    optim: str, words: Flags, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tiles = Mock(wraps=lean_adapters._in_tiles)
    monkeypatch.setattr(lean_adapters, "_in_tiles", tiles)
    adapter = {"lora_enable": True, "lora_r": 4, "mm_tunable_parts": "mm_language_model"}
    train(argv=words(optim, **adapter, bf16=True, gradient_checkpointing=True))
    assert tiles.called
    adapter = load_file(tmp_path / "out" / "adapter_model.safetensors")
    assert all(bool(w.any()) for name, w in adapter.items() if "lora_B" in name)


@pytest.mark.slow
@pytest.mark.parametrize("optim", EIGHT_BITS)
def test_moments_in_8_bits_but_of_word_embeddings(optim: str, words: Flags, tmp_path: Path) -> None:
    train(argv=words(optim, bf16=True, mm_tunable_parts="mm_language_model"))
    state = load_file(tmp_path / "out" / "checkpoint-2" / "optimizer.safetensors")
    large = [tensor for tensor in state.values() if tensor.numel() > 4096]
    assert large and all(tensor.dtype == torch.float32 for tensor in large)


@pytest.mark.slow
def test_layers_that_are_not_there(words: Flags, refused: Callable[..., str]) -> None:
    assert "error: --optim galore_adamw with --optim_target_modules nothing: No target" in refused(
        train, argv=words("galore_adamw", optim_target_modules="nothing")
    )


@pytest.mark.slow
def test_scaled_losses_skip_a_step_that_overflows(words: Flags, tmp_path: Path) -> None:
    """The first scale is 65,536: what its gradients are divided by is what a run in float32 has."""
    train(argv=words("sgd", **PRECISIONS["fp16"]))
    scaler = json.loads((tmp_path / "out" / "checkpoint-2" / "scaler.json").read_text())
    assert scaler["scale"] >= 1 and scaler["_growth_tracker"] <= 2
    assert not list((tmp_path / "out").rglob("*.pt"))
