"""Runs whose weights stay on the host: the same files as without, whatever is trained; and what is refused."""

from __future__ import annotations

import functools
import logging
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from finished_runs import report_of
from torch import nn

from llava.errors import InputError
from llava.mezo.offloading.cargo import moves
from llava.mezo.offloading.host_memory import MappedFiles
from llava.model import LlavaQwenForCausalLM
from llava.model.own_settings import read_config
from llava.train.flags.from_checkpoint import take_from_checkpoint
from llava.train.flags.parsing import parse_arguments
from llava.train.train import build, train
from llava.train.zo import offloading

pytestmark = pytest.mark.usefixtures("no_picture_of_the_loss")

TINY = Path(__file__).parents[2] / "playground" / "tiny-llava-onevision"
DATA = Path(__file__).parents[2] / "playground" / "data" / "scan"
Words = Callable[..., list[str]]
ALL = "mm_mlp_adapter,mm_language_model,mm_vision_tower"


@pytest.fixture
def words(tiny_run: Words) -> Words:
    """Command line of three zeroth-order steps, with changes by keyword."""
    return functools.partial(tiny_run, mm_tunable_parts="mm_language_model", trainer_mode="zo", max_steps=3)


def contents(folder: Path) -> dict[str, bytes]:
    """Weights and records of a run."""
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in folder.rglob("*")
        if path.suffix == ".safetensors" or path.name == "records"
    }


CASES: dict[str, dict[str, Any]] = {
    "language model": {},
    "everything": {"mm_tunable_parts": ALL, "zo_weight_storage": "fixed16"},
    "projector": {"mm_tunable_parts": "mm_mlp_adapter", "bf16": False},
    "LoRA": {"adapter": "lora", "lora_r": 4},
    "momentum, two directions": {"zo_rule": "momentum", "zo_num_directions": 2},
    "4 bits with LoRA": {"adapter": "lora", "lora_r": 4, "bits": 4},
    "8 bits with LoRA": {"adapter": "lora", "lora_r": 4, "bits": 8},
    "scales of 4 bits": {"bits": 4, "zo_quantized_scales": True, "double_quant": False},
    "generated answers": {"zo_objective": "exact_match", "max_steps": 1},
}


LONG = ("momentum, two directions", "8 bits with LoRA", "scales of 4 bits", "projector", "generated answers")


@pytest.mark.slow
@pytest.mark.parametrize("case", [pytest.param(case, marks=[pytest.mark.long] * (case in LONG)) for case in CASES])
def test_files_are_those_of_a_run_without(case: str, words: Words, tmp_path: Path) -> None:
    if "bits" in CASES[case]:
        pytest.importorskip("bitsandbytes")
    train(argv=words("plain", **CASES[case]))
    train(argv=words("offloaded", **CASES[case], zo_offload="cpu"))
    plain, offloaded = contents(tmp_path / "plain"), contents(tmp_path / "offloaded")
    assert len(plain) >= 1
    assert plain == offloaded
    report = report_of(tmp_path / "offloaded")
    assert report["zo_offload"] == "cpu"


@pytest.mark.slow
def test_a_run_goes_on_with_and_without(words: Words, tmp_path: Path) -> None:
    settings = {"save_strategy": "steps", "save_steps": 1, "save_total_limit": 9, "lr_scheduler_type": "constant"}
    for steps, offload in ((1, "cpu"), (2, "none"), (3, "cpu")):
        train(argv=words("parts", **settings | {"max_steps": steps}, resume_with_changes=True, zo_offload=offload))
        (tmp_path / "parts" / "trainer_state.json").unlink()
    train(argv=words("whole", **settings))
    assert contents(tmp_path / "parts") == contents(tmp_path / "whole")


@pytest.mark.slow
@pytest.mark.long
def test_validation_sees_the_weights_of_its_step(words: Words, tmp_path: Path) -> None:
    settings = {"eval_data_path": DATA / "val.json", "eval_strategy": "steps", "eval_steps": 2, "eval_metric": "exact"}
    curves = []
    for offload in ("none", "cpu"):
        train(argv=words(offload, **settings, zo_offload=offload))
        curves.append(report_of(tmp_path / offload)["validation"])
    assert curves[0] == curves[1]


def test_what_cannot_work_is_refused(words: Words) -> None:
    with pytest.raises(InputError, match="--zo_offload gpu must be one of none, cpu, auto"):
        parse_arguments(words(zo_offload="gpu"))
    with pytest.raises(InputError, match=r"--zo_offload .*has no effect with --trainer_mode regular"):
        parse_arguments(words(zo_offload="cpu", trainer_mode="regular"))
    with pytest.raises(InputError, match="--zo_offload auto excludes --zo_shard fsdp"):
        parse_arguments(words(zo_offload="auto", zo_shard="fsdp"))


def test_auto_compares_what_is_counted_with_the_card(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    model = LlavaQwenForCausalLM.from_pretrained(TINY)
    caplog.set_level(logging.INFO)
    assert not offloading.offloads("auto", model, torch.device("cpu"), 1)
    assert "this run is on cpu" in caplog.text
    needed = offloading.gigabytes_needed(model, 4)
    assert 1.0 < needed < 1.1
    assert offloading.gigabytes_needed(model, 40) > needed
    for memory, expected in ((needed + 0.1, False), (needed - 0.1, True)):
        there = SimpleNamespace(total_memory=memory * 1e9)
        monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device, there=there: there)
        assert offloading.offloads("auto", model, torch.device("cuda"), 4) is expected
    assert "stay on the host" in caplog.text


@pytest.mark.slow
@pytest.mark.parametrize("bf16", [True, False])
def test_a_checkpoint_stays_in_its_files(bf16: bool, words: Words) -> None:
    """Where the run has its dtype, which is bfloat16, until a weight changes; another is made weight by weight."""
    run = parse_arguments(words(bf16=bf16))
    take_from_checkpoint(run[0], run[1], read_config(TINY))
    model, _ = build(*run)
    files = MappedFiles()
    in_files = [parameter in files for parameter in model.parameters()]
    assert all(in_files) if bf16 else not any(in_files)


def test_what_is_left_on_the_card() -> None:
    assert moves(nn.Parameter(torch.ones(2)))
    assert not moves(nn.Parameter(torch.ones(2, dtype=torch.uint8), requires_grad=False))
