"""Runs whose model, or whose own checkpoint, cannot be used; and saves that left something out."""

from __future__ import annotations

import importlib.util
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import load_file, save_file
from spoilt import EVERYTHING, POINTER
from torch import nn
from transformers.integrations.deepspeed import HfTrainerDeepSpeedConfig

from llava.errors import InputError
from llava.runs.run_folder import check_whole
from llava.runs.same_run import check_same_run
from llava.train.flags.preflight import check_gathering
from llava.train.parts.saving import check_saved, lacking, load_tensors
from llava.train.parts.tunable import select_trainable
from llava.train.train import train

ROOT = Path(__file__).parents[2]
TINY = ROOT / "playground/tiny-llava-onevision"
Flags = Callable[..., list[str]]
CASES = ("HF onevision", "llava_mistral", "LoRA folder", "projector folder", "weights cut", "a weight too many")


@pytest.mark.parametrize("mode", ["zo", "regular"])
@pytest.mark.parametrize("case", CASES)
def test_a_model_that_cannot_be_used(case, mode, flags: Flags, tmp_path: Path, refused) -> None:
    folder = shutil.copytree(TINY, tmp_path / "model")
    EVERYTHING[case][0](folder)
    argv = flags(model_name_or_path=folder, vision_tower=None, trainer_mode=mode, mm_tunable_parts="mm_mlp_adapter")
    error = refused(train, argv=argv)
    assert error[error.index("error: ") :].count("\n") == 1 and str(folder) in error
    assert not [path for path in (tmp_path / "out").rglob("*") if path.is_file()]


def test_parts_that_the_model_does_not_have() -> None:
    model, args = nn.Linear(1, 1), SimpleNamespace(mm_tunable_parts="mm_language_model,mm_mlp_adapter")
    with pytest.raises(InputError, match="this model has no mm_mlp_adapter: set --vision_tower"):
        select_trainable(model, args, SimpleNamespace(), frozenset())


# ---------------------------------------------------------------------------------------------- going on


@pytest.fixture
def point(tmp_path: Path) -> Path:
    """A checkpoint's files, as far as they are looked at before a run goes on."""
    folder = tmp_path / "checkpoint-2"
    folder.mkdir()
    (folder / "trainer_state.json").write_text(json.dumps({"global_step": 2, "log_history": []}))
    for name in ("training_args", "optimizer", "scheduler"):
        (folder / f"{name}.json").write_text("{}")
    for name in ("model", "optimizer"):
        save_file({"0": torch.zeros(3)}, folder / f"{name}.safetensors")
    return folder


DAMAGE = {
    "trainer_state.json": ("{", "[]", "{}", '{"global_step": "2"}', '{"global_step": 3}', '{"global_step": 2, "a": 1}'),
    "training_args.json": ("{", "[]", ""),
    "optimizer.json": ("{", "[]"),
    "scheduler.json": ("",),
    "model.safetensors": ("x", "", POINTER),
    "optimizer.safetensors": ("x", ""),
}


@pytest.mark.parametrize(("file", "content"), [(file, content) for file in DAMAGE for content in DAMAGE[file]])
def test_a_damaged_point_is_not_gone_on_from(file: str, content: str, point: Path) -> None:
    check_whole(point)
    (point / file).write_text(content)
    with pytest.raises(InputError, match=rf"cannot go on from .*{file}.*Remove that folder"):
        check_whole(point)


def test_weights_that_are_cut_off(point: Path) -> None:
    data = (point / "model.safetensors").read_bytes()
    (point / "model.safetensors").write_bytes(data[:-4])
    with pytest.raises(InputError, match=r"model\.safetensors: cannot be read"):
        check_whole(point)


@pytest.mark.parametrize("flag", ["lora_r", "lora_alpha", "lora_bias", "vision_tower", "mm_projector_type", "bits"])
def test_flags_that_make_other_weights_are_another_run(flag: str, point: Path) -> None:
    (point / "training_args.json").write_text(json.dumps({flag: 1}))
    assert check_same_run(point, {flag: 1}, 3, changes=True) == []
    with pytest.raises(InputError, match=rf"unfinished run with --{flag} 1 \(now 2\)"):
        check_same_run(point, {flag: 2}, 3, changes=True)


# ---------------------------------------------------------------------------------------------- saving


class Tied(nn.Module):
    """A weight of two names, and one that is not trained."""

    def __init__(self) -> None:
        super().__init__()
        self.one = nn.Linear(2, 3, bias=False)
        self.two = nn.Linear(2, 3, bias=False)
        self.two.weight = self.one.weight
        self.frozen = nn.Parameter(torch.zeros(4), requires_grad=False)


WHOLE = {"two.weight": torch.zeros(3, 2), "frozen": torch.zeros(4)}


@pytest.mark.parametrize(
    ("file", "tensors", "left_out"),
    [
        ("model.safetensors", WHOLE, None),
        ("model.safetensors", {"two.weight": WHOLE["two.weight"]}, "frozen"),
        ("model.safetensors", WHOLE | {"two.weight": torch.zeros(0)}, "one.weight"),
        ("mm_projector.safetensors", {"one.weight": torch.zeros(3, 2)}, None),
        ("mm_projector.safetensors", {"frozen": torch.zeros(4)}, "one.weight"),
    ],
)
def test_what_a_save_left_out(
    file: str, tensors: dict[str, torch.Tensor], left_out: str | None, tmp_path: Path
) -> None:
    save_file(tensors, tmp_path / file)
    assert lacking(Tied(), tmp_path) == left_out


def test_a_save_that_wrote_nothing_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"lacks one\.weight, so it cannot be used"):
        check_saved(Tied(), tmp_path)


def test_tensors_of_another_shape_are_not_stretched(tmp_path: Path) -> None:
    save_file({"frozen": torch.ones(1)}, tmp_path / "x.safetensors")
    with pytest.raises(InputError, match=r"frozen is \[1\], in this model \[4\]"):
        load_tensors(Tied(), tmp_path / "x.safetensors")


# ---------------------------------------------------------------------------------------------- DeepSpeed

needs_deepspeed = pytest.mark.skipif(importlib.util.find_spec("deepspeed") is None, reason="needs DeepSpeed")


@needs_deepspeed
@pytest.mark.parametrize(
    ("stage", "gather", "allowed"), [(2, None, True), (3, True, True), (3, False, False), (3, None, False)]
)
def test_zero_3_has_to_put_the_weights_together(stage: int, gather: bool | None, allowed: bool) -> None:
    zero = {"stage": stage} | ({} if gather is None else {"stage3_gather_16bit_weights_on_model_save": gather})
    config = HfTrainerDeepSpeedConfig({"zero_optimization": zero})
    args = SimpleNamespace(deepspeed="zero.json", hf_deepspeed_config=config)
    if allowed:
        check_gathering(args)
        return
    with pytest.raises(InputError, match=r"--deepspeed zero\.json: .*gather_16bit.*set it to true"):
        check_gathering(args)


# DeepSpeed compiles an exchange of its own for CPUs, which takes minutes; a single process exchanges nothing.
RUN = """
import sys, deepspeed.comm
sys.modules["deepspeed.comm.torch"].build_shm_op = lambda: None
from llava.train.train import train
train(argv=sys.argv[1:])
"""


@needs_deepspeed
@pytest.mark.long
def test_zero_3_trains_and_saves_an_adapter_and_a_projector(flags: Flags, tmp_path: Path) -> None:
    zero = {"stage": 3, "stage3_gather_16bit_weights_on_model_save": True}
    auto = ("train_batch_size", "train_micro_batch_size_per_gpu", "gradient_accumulation_steps")
    settings = {"bf16": {"enabled": "auto"}, "zero_optimization": zero, **dict.fromkeys(auto, "auto")}
    (tmp_path / "zero3.json").write_text(json.dumps(settings))
    out = tmp_path / "out"
    argv = flags(
        model_name_or_path=TINY,
        vision_tower=None,
        mm_tunable_parts="mm_mlp_adapter",
        lora_enable=True,
        deepspeed=tmp_path / "zero3.json",
        max_steps=1,
        per_device_train_batch_size=2,
        model_max_length=1024,
        save_strategy="no",
    )
    alone = {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "1", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "29617"}
    env = {**os.environ, "PYTHONPATH": str(ROOT), "DS_ACCELERATOR": "cpu", "DS_BUILD_OPS": "0", **alone}
    done = subprocess.run([sys.executable, "-c", RUN, *argv], env=env, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]
    assert "ZeRO-3 trains weights of one dtype" in done.stderr
    adapter, others = load_file(out / "adapter_model.safetensors"), load_file(out / "non_lora_trainables.safetensors")
    assert len(others) == 5 and all(tensor.numel() for tensor in (*adapter.values(), *others.values()))
    assert {tensor.dtype for tensor in (*adapter.values(), *others.values())} == {torch.bfloat16}
