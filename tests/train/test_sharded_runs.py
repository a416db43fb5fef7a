"""Runs whose processes share the weights: they end as data-parallel ones do, bit for bit, however they were cut."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from finished_runs import report_of, same, weights
from launching import run_on

from llava.mezo.errors import InputError
from llava.mezo.journal.replay import main as replay
from llava.train.flags.parsing import parse_arguments
from llava.train.train import train

Flags = Callable[..., list[str]]
Run = Callable[..., Path]
RECORD = 44
"""Bytes of a record of the journal with one learning rate."""


@pytest.fixture()
def run(small_run: Flags, tmp_path: Path) -> Run:
    """Its output folder, of a run on so many processes with these flags."""

    def start(name: str, shard: str, count: int = 2, **changes: Any) -> Path:
        words = small_run(**changes, zo_shard=shard, output_dir=tmp_path / name)
        run_on(count, train, (None, words), tmp_path / "log")
        return tmp_path / name

    return start


def assert_same(one: Path, other: Path) -> None:
    """Weights and journal."""
    assert same(weights(one), weights(other))
    for name in ("records.bin", "header.json"):
        assert (one / "mezo_journal" / name).read_bytes() == (other / "mezo_journal" / name).read_bytes()


def cut(folder: Path, to: Path, *checkpoints: str) -> None:
    """As it was when the third record was being written."""
    shutil.copytree(folder / "mezo_journal", to / "mezo_journal")
    os.truncate(to / "mezo_journal" / "records.bin", 3 * RECORD - 10)
    for name in checkpoints:
        shutil.copytree(folder / name, to / name)


@pytest.mark.slow
def test_shards_end_as_copies(run: Run, small_run: Flags, bases: dict[str, Path], tmp_path: Path) -> None:
    """As one process that accumulates; also stopped in the third step and started again, and replayed. Tied head."""
    train(argv=small_run(gradient_accumulation_steps=2, output_dir=tmp_path / "plain"))
    plain, shared = tmp_path / "plain", run("shared", "fsdp")
    assert_same(plain, shared)
    report = report_of(shared)
    whole = sum(t.numel() * t.element_size() for t in weights(shared).values())
    assert report["zo_shard"]["bytes_held"] < 0.52 * whole
    assert report["trainable_parameters"] == report_of(plain)["trainable_parameters"]

    cut(shared, tmp_path / "again")
    assert_same(plain, run("again", "fsdp"))

    words = ["--model-path", str(bases["qwen2-base-tied"]), "--journal", str(shared / "mezo_journal")]
    assert replay([*words, "--output-dir", str(tmp_path / "replayed")]) == 0
    assert (tmp_path / "replayed" / "model.safetensors").read_bytes() == (shared / "model.safetensors").read_bytes()


@pytest.mark.slow
@pytest.mark.long
@pytest.mark.parametrize(
    "changes",
    [
        {"mm_tunable_parts": "mm_language_model,mm_mlp_adapter,mm_vision_tower", "bf16": True},
        {"adapter": "lora", "lora_r": 4, "mm_tunable_parts": "mm_mlp_adapter", "learning_rate": 1e-2},
        {"zo_batch_growth": "0:3", "zo_rule": "momentum", "zo_objective": "accuracy", "zo_tensor_scales": "norms"},
        {"zo_objective": "f1"},
        {"tunable_layers": "1-", "freeze_vectors": True, "mm_tunable_parts": "mm_language_model"},
    ],
    ids=["everything", "lora", "growth", "generated", "upper layers"],
)
def test_on_three(changes: dict[str, Any], run: Run, tmp_path: Path) -> None:
    """Rows that three do not divide, weights that are frozen, adapters, and steps of several kinds."""
    plain, shared = run("plain", "none", 3, **changes), run("shared", "fsdp", 3, **changes)
    assert_same(plain, shared)
    cut(shared, tmp_path / "again")
    assert_same(plain, run("again", "fsdp", 3, **changes))


@pytest.mark.slow
@pytest.mark.long
@pytest.mark.parametrize("adapter", ["none", "lora"])
def test_checkpoints_are_those_of_any_run(adapter: str, run: Run, tmp_path: Path) -> None:
    """Either kind of run goes on from a whole checkpoint of the other one."""
    changes = {"save_strategy": "steps", "save_steps": 1, "adapter": adapter}
    if adapter == "lora":
        changes |= {"mm_tunable_parts": None, "lora_r": 4}
    ends = {name: run(name, name, **changes) for name in ("none", "fsdp")}
    assert_same(ends["none"], ends["fsdp"])
    ways = [("none", "fsdp"), ("fsdp", "none"), ("fsdp", "fsdp")]
    for name, other in ways if adapter == "none" else ways[2:]:
        cut(ends[name], tmp_path / f"{name}_{other}", "checkpoint-2")
        assert_same(ends["none"], run(f"{name}_{other}", other, **changes))
    shutil.rmtree(tmp_path / "fsdp_fsdp" / "mezo_journal")
    for name in ("checkpoint-3", "trainer_state.json"):
        path = tmp_path / "fsdp_fsdp" / name
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    again = run("fsdp_fsdp", "fsdp", **changes, zo_journal=False, resume_with_changes=True)
    assert same(weights(again), weights(ends["none"]))


@pytest.mark.slow
@pytest.mark.long
def test_branches(run: Run, golden: Path, tmp_path: Path) -> None:
    """From another run's second step on; stopped and started again, and with the weights of the best step."""
    parent = run("parent", "none")
    validated = {"eval_steps": 1, "eval_data_path": golden / "fullmodel" / "data" / "data.json", "learning_rate": 100.0}
    changes = {**validated, "load_best_model_at_end": True, "save_strategy": None}
    changes["zo_from_journal"] = f"{parent / 'mezo_journal'}:2"
    plain, shared = run("plain", "none", **changes), run("shared", "fsdp", **changes)
    assert_same(plain, shared)
    report = report_of(shared)
    assert report["validation"]["weights_of_step"] < 3
    cut(shared, tmp_path / "again")
    assert_same(plain, run("again", "fsdp", **changes))


@pytest.mark.slow
@pytest.mark.long
def test_validation(run: Run, golden: Path, tmp_path: Path) -> None:
    """Of generated answers: five records to two processes, and the weights of the best step at the end."""
    records = json.loads((golden / "fullmodel" / "data" / "data.json").read_text())[:5]
    (tmp_path / "val.json").write_text(json.dumps(records))
    changes = {"learning_rate": 100.0, "eval_steps": 1, "eval_data_path": tmp_path / "val.json", "eval_metric": "exact"}
    changes |= {"load_best_model_at_end": True, "save_strategy": None}
    plain, shared = run("plain", "none", **changes), run("shared", "fsdp", **changes)
    assert_same(plain, shared)
    reports = [report_of(folder)["validation"] for folder in (plain, shared)]
    assert reports[0] == reports[1] and reports[0]["weights_of_step"] < 3


@pytest.mark.parametrize(
    ("changes", "processes", "message"),
    [
        ({}, 1, "--zo_shard fsdp needs several processes"),
        ({"zo_weight_storage": "fixed16"}, 2, "--zo_weight_storage fixed16 excludes --zo_shard fsdp"),
        ({"bits": 4, "adapter": "lora"}, 2, "--bits 4 excludes --zo_shard fsdp"),
        ({"zo_estimator": "per_example", "dataloader_drop_last": True}, 2, "--zo_estimator per_example excludes"),
        ({"zo_parallel": "directions"}, 2, "--zo_parallel directions excludes --zo_shard fsdp"),
        ({"zo_check_ranks_steps": 7}, 2, "--zo_check_ranks_steps 7 has no effect with --zo_shard fsdp"),
        ({"zo_shard": "zero"}, 2, "--zo_shard zero must be one of none, fsdp"),
        ({"trainer_mode": "regular", "gradient_checkpointing": False}, 2, "has no effect with --trainer_mode regular"),
    ],
)
def test_what_is_refused(
    changes: dict[str, Any], processes: int, message: str, small_run: Flags, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WORLD_SIZE", str(processes))
    with pytest.raises(InputError, match=message):
        parse_arguments(small_run(**{"zo_shard": "fsdp", **changes}))
