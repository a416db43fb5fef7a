"""Whole runs from the command line: what is written, resuming, stopping, diverging, bad input."""

from __future__ import annotations

import functools
import json
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from finished_runs import logged_steps, report_of, same, state_of, weights
from safetensors.torch import load_file, save_file

from llava.errors import EXIT_LOST
from llava.mezo.journal.files import Journal
from llava.mezo.same_weights import RanksDifferError
from llava.model.adapter_kinds import VIRTUAL_TOKENS
from llava.runs.run_folder import written_alone
from llava.train.train import train

ROOT = Path(__file__).parents[2]
Flags = Callable[..., list[str]]

QUICK = {
    "bf16": None,
    "max_steps": 4,
    "per_device_train_batch_size": 2,
    "logging_steps": 1,
    "learning_rate": 1e-3,
    "lr_scheduler_type": "constant",
    "group_by_modality_length": True,
    "disable_tqdm": True,
}
REPORT_FIELDS = {
    "preset",
    "model",
    "trainer_mode",
    "steps",
    "accuracy_before",
    "accuracy_after",
    "final_loss",
    "seconds_per_step",
    "peak_memory_bytes",
    "trainable_parameters",
    "versions",
}


@pytest.fixture()
def quick(flags: Flags, small_tower_folder: Path) -> Flags:
    """Command line of a run of four steps on a model that takes milliseconds."""

    return functools.partial(flags, vision_tower=small_tower_folder, mm_tunable_parts="mm_language_model", **QUICK)


@pytest.mark.parametrize("mode", ["zo", "regular"])
def test_what_a_run_leaves_behind(mode: str, quick: Flags, tmp_path: Path) -> None:
    train(argv=quick(trainer_mode=mode, save_steps=2))
    out = tmp_path / "out"
    names = {path.name for path in out.rglob("*")}
    assert {
        "model.safetensors",
        "config.json",
        "tokenizer.json",
        "trainer_state.json",
        "report.json",
        "loss.png",
    } <= names
    assert {"checkpoint-2", "checkpoint-4", "training_args.json"} <= names
    assert not [name for name in names if name.endswith((".bin", ".pt", ".pth", ".pkl")) and name != "records.bin"]

    report = report_of(out)
    assert report.keys() >= REPORT_FIELDS
    assert (report["steps"], report["trainer_mode"]) == (4, mode)
    assert mode == "regular" or report["zo_kernel"] in ("numba", "torch", "triton")  # the one that ran, not "auto"
    config = json.loads((out / "config.json").read_text())
    assert (config["model_type"], config["use_cache"], config["tokenizer_model_max_length"]) == (
        "llava_qwen",
        True,
        2048,
    )

    logs = logged_steps(out)
    assert len(logs) == 4
    expected = {"loss", "learning_rate", "epoch", "step"}
    expected |= {"projected_grad", "loss_plus", "loss_minus", "step_time"} if mode == "zo" else {"grad_norm"}
    assert set(logs[-1]) == expected


def test_ranks_that_differ_end_with_one_line(
    quick: Flags, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def differs(*given: object) -> None:
        raise RanksDifferError("after step 5 rank 1 of 2 has other weights")

    monkeypatch.setattr("llava.train.train._train", differs)
    with pytest.raises(SystemExit) as stopped:
        train(argv=quick())
    assert stopped.value.code == EXIT_LOST
    assert capsys.readouterr().err.startswith("error: after step 5 rank 1 of 2 has other weights. What was done")


@pytest.mark.slow
def test_same_seed_same_weights_and_other_seed_other_weights(quick: Flags, tmp_path: Path) -> None:
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        train(argv=quick(trainer_mode="zo", save_strategy="no", output_dir=tmp_path / name, zo_seed=seed))
    assert same(weights(tmp_path / "a"), weights(tmp_path / "b"))
    assert not same(weights(tmp_path / "a"), weights(tmp_path / "c"))


@pytest.mark.slow
@pytest.mark.parametrize("mode", ["zo", "regular"])
@pytest.mark.parametrize("parts", ["mm_language_model", "mm_mlp_adapter"])
def test_resumed_run_ends_as_the_one_that_never_stopped(mode: str, parts: str, quick: Flags, tmp_path: Path) -> None:
    changes = {"trainer_mode": mode, "mm_tunable_parts": parts, "save_steps": 2}
    train(argv=quick(**changes, output_dir=tmp_path / "whole"))
    shutil.copytree(tmp_path / "whole" / "checkpoint-2", tmp_path / "half" / "checkpoint-2")
    train(argv=quick(**changes, output_dir=tmp_path / "half"))
    whole = weights(tmp_path / "whole")
    assert same(whole, weights(tmp_path / "half"))
    file = "model.safetensors" if parts == "mm_language_model" else "mm_projector.safetensors"
    assert not same(whole, weights(tmp_path / "whole" / "checkpoint-2", file))


@pytest.mark.slow
@pytest.mark.parametrize("length", [{"max_steps": 4}, {"max_steps": -1, "num_train_epochs": 0.4}], ids=str)
@pytest.mark.parametrize("mode", ["zo", "regular"])
def test_a_run_killed_while_its_model_is_saved_takes_no_further_step(
    mode: str, length: dict[str, object], quick: Flags, tmp_path: Path
) -> None:
    out, flags = tmp_path / "out", quick(trainer_mode=mode, **length, save_steps=2)
    train(argv=flags)
    whole, steps = weights(out), state_of(out)["global_step"]
    assert (out / f"checkpoint-{steps}").is_dir()
    for name in ("trainer_state.json", "model.safetensors"):
        (out / name).unlink()
    train(argv=flags)
    assert same(weights(out), whole) and report_of(out)["steps"] == state_of(out)["global_step"] == steps
    assert [entry["step"] for entry in logged_steps(out)] == list(range(1, steps + 1))


@pytest.mark.slow
@pytest.mark.parametrize("mode", ["zo", "regular"])
@pytest.mark.parametrize(("flag", "few"), [("max_steps", 3), ("num_train_epochs", 0.1)])
def test_a_run_is_not_given_fewer_steps_than_it_has(
    mode: str, flag: str, few: float, quick: Flags, tmp_path: Path, refused: Callable[..., str]
) -> None:
    plain = {"trainer_mode": mode, "save_steps": 2}
    train(argv=quick(**plain))
    (tmp_path / "out" / "trainer_state.json").unlink()
    changes = {"max_steps": -1, flag: few, "resume_with_changes": True}
    said = refused(train, argv=quick(**plain, **changes))
    assert f"--{flag} {few}" in said and "has 4: give at least these" in said


def test_two_runs_do_not_write_to_one_folder(quick: Flags, tmp_path: Path, refused: Callable[..., str]) -> None:
    with written_alone(tmp_path / "out", 0.0):
        assert "another run is writing there" in refused(train, argv=quick(trainer_mode="regular"))
        assert "another run is writing there" in refused(train, argv=quick(trainer_mode="zo", zo_journal=False))
        assert "another run is writing there" in refused(train, argv=quick(trainer_mode="zo"))
    assert not list((tmp_path / "out").iterdir())


@pytest.mark.slow
@pytest.mark.parametrize(
    ("mode", "adapter"),
    [
        *(("zo", kind) for kind in ("lora", "dora", "ln", "pissa", "prefix")),
        *(("regular", kind) for kind in ("lora", "rslora", "ia3", "milora", "mora", "prompt", "prefix", "houlsby")),
    ],
)
def test_adapter_run_resumes_completely(mode: str, adapter: str, quick: Flags, tmp_path: Path) -> None:
    changes = {"trainer_mode": mode, "adapter": adapter, "lora_r": 4, "save_steps": 2, "lora_dropout": 0.0}
    changes["adapter_tokens"] = 4 if adapter in VIRTUAL_TOKENS else None
    changes["mm_tunable_parts"] = "mm_mlp_adapter,mm_language_model"
    train(argv=quick(**changes, output_dir=tmp_path / "whole"))
    shutil.copytree(tmp_path / "whole" / "checkpoint-2", tmp_path / "half" / "checkpoint-2")
    train(argv=quick(**changes, output_dir=tmp_path / "half"))
    for file in ("adapter_model.safetensors", "non_lora_trainables.safetensors"):
        whole = weights(tmp_path / "whole", file)
        assert same(whole, weights(tmp_path / "half", file))
        assert not same(whole, weights(tmp_path / "whole" / "checkpoint-2", file))


@pytest.mark.parametrize("mode", ["zo", "regular"])
def test_plain_language_model_on_text(mode: str, quick: Flags, tmp_path: Path) -> None:
    record = {"conversations": [{"from": "human", "value": "Say yes."}, {"from": "gpt", "value": "yes"}]}
    (tmp_path / "text.json").write_text(json.dumps([record] * 4))
    vision = ("vision_tower", "image_aspect_ratio", "image_grid_pinpoints", "mm_patch_merge_type")
    changes = {"data_path": tmp_path / "text.json", "group_by_modality_length": None, "max_steps": 1}
    train(argv=quick(trainer_mode=mode, **changes, **dict.fromkeys(vision)))
    assert json.loads((tmp_path / "out" / "config.json").read_text())["model_type"] == "qwen2"


def test_skipped_samples_are_listed_in_the_report(quick: Flags, golden: Path, tmp_path: Path) -> None:
    records = json.loads((golden / "fullmodel" / "data" / "data.json").read_text())
    records.append({**records[0], "id": "gone", "image": "gone.png"})
    (tmp_path / "data.json").write_text(json.dumps(records))
    changes = {"trainer_mode": "zo", "data_path": tmp_path / "data.json", "max_steps": 1, "save_strategy": "no"}
    with pytest.raises(SystemExit):
        train(argv=quick(**changes, num_train_epochs=1, per_device_train_batch_size=7))
    train(argv=quick(**changes, skip_bad_samples=True, output_dir=tmp_path / "skipping"))
    (skipped,) = report_of(tmp_path / "skipping")["skipped_samples"]
    assert skipped["id"] == "gone"
    assert "gone.png" in skipped["reason"]


def test_finished_run_is_refused(quick: Flags, tmp_path: Path, refused: Callable[..., str]) -> None:
    train(argv=quick(trainer_mode="zo", max_steps=1))
    before = weights(tmp_path / "out")
    assert "finished run" in refused(train, argv=quick(trainer_mode="zo", max_steps=1))
    assert same(before, weights(tmp_path / "out"))
    train(argv=quick(trainer_mode="zo", max_steps=2, overwrite_output_dir=True))
    assert report_of(tmp_path / "out")["steps"] == 2


def test_loss_that_is_not_finite_is_not_applied(
    quick: Flags, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    train(argv=quick(trainer_mode="zo", learning_rate=0.0, output_dir=tmp_path / "untouched"))
    with pytest.raises(SystemExit) as stopped:
        train(argv=quick(trainer_mode="zo", zo_eps=1e30, zo_max_bad_steps=2))
    assert stopped.value.code == 3 and "zo_max_bad_steps 2" in capsys.readouterr().err
    assert same(weights(tmp_path / "out" / "checkpoint-2", "model.safetensors"), weights(tmp_path / "untouched"))
    assert not (tmp_path / "out" / "trainer_state.json").exists()


@pytest.mark.slow
def test_after_ctrl_c_the_run_goes_on(quick: Flags, tmp_path: Path) -> None:
    words = quick(trainer_mode="zo", max_steps=100_000, save_strategy="no")
    command = [sys.executable, str(ROOT / "llava" / "train" / "train_mem.py"), *words]
    log = (tmp_path / "log").open("w+")
    environment = {"PYTHONPATH": str(ROOT), "PATH": "", "OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(command, stderr=log, stdout=log, env=environment)
    deadline = time.monotonic() + 120
    while "step 3 of" not in (tmp_path / "log").read_text() and time.monotonic() < deadline:
        assert process.poll() is None, (tmp_path / "log").read_text()
        time.sleep(0.1)
    process.send_signal(signal.SIGINT)
    assert process.wait(60) == 130, (tmp_path / "log").read_text()
    step = len(Journal.read(tmp_path / "out" / "mezo_journal").records)
    assert step >= 3 and not list((tmp_path / "out").glob("checkpoint-*"))
    assert not (tmp_path / "out" / "trainer_state.json").exists()
    train(argv=quick(trainer_mode="zo", max_steps=step + 2, save_strategy="no", resume_with_changes=True))
    assert report_of(tmp_path / "out")["steps"] == step + 2


BAD_PATHS = {
    "model_name_or_path": ("/nowhere/model", ["/nowhere/model", "MODEL"]),
    "data_path": ("/nowhere/x.json", ["/nowhere/x.json"]),
    "image_folder": ("/nowhere/images", ["/nowhere/images", "IMAGE_FOLDER"]),
    "vision_tower": ("/nowhere/tower", ["/nowhere/tower"]),
    "output_dir": ("/proc/nowhere", ["/proc/nowhere", "OUTPUT_DIR"]),
}


@pytest.mark.parametrize("flag", BAD_PATHS)
def test_paths_that_do_not_work(flag: str, quick: Flags, refused: Callable[..., str]) -> None:
    value, parts = BAD_PATHS[flag]
    message = refused(train, argv=quick(trainer_mode="zo", **{flag: value}))
    assert message.count("error:") == 1
    for part in parts:
        assert part in message


def test_hub_model_without_network(quick: Flags, refused: Callable[..., str]) -> None:
    assert "MODEL" in refused(train, argv=quick(model_name_or_path="lmms-lab/llava-onevision-qwen2-0.5b-si"))


def test_divergence_ends_a_regular_run(quick: Flags, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        train(argv=quick(trainer_mode="regular", learning_rate=1e30, max_steps=6, save_steps=1, logging_steps=1))
    assert stopped.value.code == 3
    said = capsys.readouterr().err
    assert "has diverged" in said and "Lower --learning_rate" in said
    out = tmp_path / "out"
    assert not (out / "model.safetensors").exists() and not (out / "report.json").exists()


def test_a_base_with_a_nan_is_refused_by_name(tmp_path: Path, refused: Callable[..., str]) -> None:
    shutil.copytree(ROOT / "playground" / "tiny-llava-onevision", tmp_path / "base")
    values = load_file(tmp_path / "base" / "model.safetensors")
    values["model.layers.0.mlp.up_proj.weight"][0, 0] = float("nan")
    save_file(values, tmp_path / "base" / "model.safetensors", {"format": "pt"})
    data = ROOT / "playground" / "data" / "scan"
    words = ["--model_name_or_path", str(tmp_path / "base"), "--data_path", str(data / "val.json"), "--version"]
    words += ["qwen_1_5", "--image_folder", str(data), "--output_dir", str(tmp_path / "out"), "--max_steps", "1"]
    assert "model.layers.0.mlp.up_proj.weight has numbers that are not finite" in refused(train, argv=words)


def test_a_run_goes_on_from_the_checkpoint_that_is_given(quick: Flags, tmp_path: Path) -> None:
    plain = {"trainer_mode": "regular", "save_steps": 2}
    train(argv=quick(**plain))
    train(argv=quick(**plain, output_dir=tmp_path / "again", resume_from_checkpoint=tmp_path / "out" / "checkpoint-2"))
    assert same(weights(tmp_path / "out"), weights(tmp_path / "again"))
    state = state_of(tmp_path / "again")
    assert (tmp_path / "again" / "checkpoint-4").exists() and not (tmp_path / "again" / "checkpoint-2").exists()
    assert state["global_step"] == 4


@pytest.mark.parametrize("mode", ["zo", "regular"])
def test_a_run_goes_on_with_changes_that_are_wanted(
    mode: str, quick: Flags, tmp_path: Path, refused: Callable[..., str]
) -> None:
    records = (ROOT / "playground" / "data" / "scan" / "val.json").read_text()
    (tmp_path / "data.json").write_text(records)
    changes = {"trainer_mode": mode, "save_steps": 2, "data_path": tmp_path / "data.json", "zo_journal": False}
    changes |= {"image_folder": ROOT / "playground" / "data" / "scan", "lr_scheduler_type": "linear"}
    train(argv=quick(**changes))
    out = tmp_path / "out"
    for path in (out / "trainer_state.json", out / "checkpoint-4" / "trainer_state.json"):
        path.unlink()
    (tmp_path / "data.json").write_text(records.replace('"value"', ' "value"'))
    before = weights(out / "checkpoint-2", "model.safetensors")
    said = refused(train, argv=quick(**changes, learning_rate=1e-4))
    assert "other records in --data_path" in said and "--learning_rate 0.001 (now 0.0001)" in said
    train(argv=quick(**changes, learning_rate=1e-4, resume_with_changes=True))
    rates = [one["learning_rate"] for one in logged_steps(out)]
    assert rates == pytest.approx([1e-3, 7.5e-4, 5e-5, 2.5e-5])
    (recorded,) = report_of(out)["changes"]
    assert recorded["after_step"] == 2 and set(recorded["flags"]) == {"learning_rate", "data_sha256"}
    assert not same(weights(out), before)


def test_an_adapter_does_not_go_on_with_another_base(
    quick: Flags, bases: dict[str, Path], tmp_path: Path, refused: Callable[..., str]
) -> None:
    base = tmp_path / "base"
    shutil.copytree(bases["qwen2-base"], base)
    flags = {"model_name_or_path": base, "adapter": "lora", "lora_r": 4, "mm_tunable_parts": None, "save_steps": 2}
    train(argv=quick(**flags))
    (tmp_path / "out" / "trainer_state.json").unlink()
    tensors = load_file(base / "model.safetensors")
    tensors["model.norm.weight"] *= 2
    save_file(tensors, base / "model.safetensors", metadata={"format": "pt"})
    assert "unfinished run with other weights in --model_name_or_path" in refused(train, argv=quick(**flags))


def test_a_run_does_not_go_on_without_its_optimizer(quick: Flags, tmp_path: Path, refused: Callable[..., str]) -> None:
    train(argv=quick(trainer_mode="regular", save_steps=2, save_only_model=True))
    for path in (tmp_path / "out" / "trainer_state.json", tmp_path / "out" / "checkpoint-4" / "trainer_state.json"):
        path.unlink()
    assert "checkpoint-2 has no optimizer.json, as after --save_only_model" in refused(
        train, argv=quick(trainer_mode="regular", save_steps=2, save_only_model=True)
    )


def test_a_checkpoint_that_is_none_is_refused(quick: Flags, tmp_path: Path, refused: Callable[..., str]) -> None:
    assert "--resume_from_checkpoint" in refused(train, argv=quick(resume_from_checkpoint=tmp_path / "nothing"))


def test_a_run_without_a_full_batch_is_refused(quick: Flags, tmp_path: Path, refused: Callable[..., str]) -> None:
    assert "no full batch" in refused(train, argv=quick(per_device_train_batch_size=500, dataloader_drop_last=True))


def test_what_a_run_starts_from_is_not_written_over(
    quick: Flags, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    train(argv=quick(trainer_mode="zo", max_steps=2))
    for said, changes in (
        ("is the folder of --model_name_or_path", {"model_name_or_path": out}),
        ("excludes --zo_from_journal", {"zo_from_journal": f"{out}/mezo_journal:1", "overwrite_output_dir": True}),
        ("excludes --pretrain_mm_mlp_adapter", {"pretrain_mm_mlp_adapter": out, "overwrite_output_dir": True}),
    ):
        with pytest.raises(SystemExit):
            train(argv=quick(trainer_mode="zo", **changes))
        assert said in capsys.readouterr().err
    assert (out / "model.safetensors").exists() and (out / "mezo_journal" / "header.json").exists()


@pytest.mark.parametrize("flag", ["data_path", "eval_data_path"])
@pytest.mark.parametrize(
    ("image", "expected"),
    [
        ("none.png", "none.png does not exist; check --image_folder"),
        (["a.png", "b.png"], "1 <image> marks in the turns, but 2 images or videos"),
    ],
    ids=["missing", "marks"],
)
def test_a_record_whose_pictures_do_not_fit_is_found_before_a_model_is_loaded(
    image: Any, expected: str, flag: str, quick: Flags, golden: Path, tmp_path: Path, refused, caplog
) -> None:
    records = json.loads((golden / "fullmodel" / "data" / "data.json").read_text())
    changed = next(record for record in reversed(records) if isinstance(record.get("image"), str))
    changed["image"] = image
    (tmp_path / "data.json").write_text(json.dumps(records))
    said = refused(train, argv=quick(**{flag: tmp_path / "data.json"}))
    assert str(changed["id"]) in said and expected in said and "loading the model" not in caplog.text
