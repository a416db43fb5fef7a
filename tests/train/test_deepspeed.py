"""DeepSpeed with the files that LLaVA-NeXT's scripts name: two processes on CPUs have the weights of one without it."""

from __future__ import annotations

import functools
import importlib.util
import json
import os
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from finished_runs import logged_steps, weights

from llava.errors import InputError
from llava.train.flags.optimizers import check_optimizer
from llava.train.flags.parsing import parse_arguments
from llava.train.train import train

ROOT = Path(__file__).parents[2]
FILES = ("zero1", "zero2", "zero2_fused_adamw", "zero2_offload", "zero3", "zero3_offload", "zero3pp")
ON_CPUS = ("zero1", "zero2", "zero2_offload", "zero3", "zero3_offload")
"""The others need kernels for CUDA."""
Flags = Callable[..., list[str]]

# DeepSpeed compiles an exchange of its own for CPUs, which takes minutes; gloo does as well.
RUN = """
import sys, deepspeed.comm
sys.modules["deepspeed.comm.torch"].build_shm_op = lambda: None
from llava.train.train import train
train(argv=sys.argv[1:])
"""

needs_deepspeed = pytest.mark.skipif(importlib.util.find_spec("deepspeed") is None, reason="needs DeepSpeed")


def contents(name: str) -> Any:
    return json.loads((ROOT / "scripts" / f"{name}.json").read_text())


@pytest.mark.parametrize("name", FILES)
def test_files_take_the_flags_for_what_flags_say(name: str) -> None:
    """And a model is written at the end."""
    settings = contents(name)
    for key in ("train_batch_size", "train_micro_batch_size_per_gpu", "gradient_accumulation_steps"):
        assert settings[key] == "auto"
    assert settings["bf16"] == {"enabled": "auto"} and settings["gradient_clipping"] == "auto"
    zero = settings["zero_optimization"]
    assert zero["stage"] == int(name[4])
    assert ("offload_optimizer" in zero) == name.endswith("offload")
    assert zero.get("stage3_gather_16bit_weights_on_model_save", zero["stage"] != 3)


@needs_deepspeed
@pytest.mark.parametrize(
    "words", ["--optim sgd", "--optim_args a=b", "--mm_projector_lr 1e-4", "--mm_vision_tower_lr 1e-4"]
)
def test_a_file_with_an_optimizer_excludes_flags_of_one(words: str, tmp_path: Path) -> None:
    file = ROOT / "scripts" / "zero2_fused_adamw.json"
    argv = ["--data_path", "x.json", "--output_dir", str(tmp_path), "--deepspeed", str(file), *words.split()]
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RANK", "0")
        with pytest.raises(InputError) as error:
            parse_arguments(argv)
    assert words.split()[0] in str(error.value) and "zero2_fused_adamw.json" in str(error.value)
    assert check_optimizer.__doc__


def free_port() -> int:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return one.getsockname()[1]


def in_two_processes(argv: list[str]) -> None:
    env = {**os.environ, "PYTHONPATH": str(ROOT), "DS_ACCELERATOR": "cpu", "DS_BUILD_OPS": "0", "OMP_NUM_THREADS": "1"}
    env |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port()), "WORLD_SIZE": "2", "LOCAL_SIZE": "2"}
    started = [
        subprocess.Popen(
            [sys.executable, "-c", RUN, *argv],
            env={**env, "RANK": str(rank), "LOCAL_RANK": str(rank)},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for rank in range(2)
    ]
    said = [one.communicate(timeout=400)[0] for one in started]
    assert [one.returncode for one in started] == [0, 0], said[0][-3000:]


@pytest.fixture
def words(flags: Flags, small_tower_folder: Path) -> Flags:
    """Three steps of two samples in float32; a large epsilon, since Adam makes steps of rounding errors without one."""

    values = {
        "vision_tower": small_tower_folder,
        "mm_tunable_parts": "mm_vision_tower,mm_mlp_adapter,mm_language_model",
        "bf16": False,
        "max_steps": 3,
        "learning_rate": 1e-2,
        "adam_epsilon": 1e-2,
        "per_device_train_batch_size": 1,
        "save_strategy": "no",
        "logging_steps": 1,
        "disable_tqdm": True,
    }
    return functools.partial(flags, **values)


@needs_deepspeed
@pytest.mark.slow
@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=() if name == "zero3" else pytest.mark.long) for name in ON_CPUS]
)
def test_two_processes_have_the_weights_of_one(name: str, words: Flags, tmp_path: Path) -> None:
    train(argv=words(output_dir=tmp_path / "one", gradient_accumulation_steps=2))
    in_two_processes(words(output_dir=tmp_path / "two", deepspeed=ROOT / "scripts" / f"{name}.json"))
    one, two = (weights(tmp_path / run) for run in ("one", "two"))
    assert two.keys() == one.keys() and "lm_head.weight" not in two  # which is tied
    for weight, value in one.items():
        torch.testing.assert_close(two[weight], value, atol=2e-5, rtol=1e-3, msg=weight)
    losses = [[entry["loss"] for entry in logged_steps(tmp_path / run)] for run in ("one", "two")]
    assert losses[0] == pytest.approx(losses[1], rel=1e-4) and losses[0][0] != losses[0][2]
