"""Runs with a journal, from the command line: resuming, replaying, branching, the best step."""

from __future__ import annotations

import dataclasses
import functools
import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from finished_runs import report_of, same, state_of, weights
from safetensors.torch import load_file, save_file
from transformers import TrainerCallback

from llava.eval import accuracy
from llava.eval.journaled import JournaledModel
from llava.mezo.journal.files import HEADER, RECORDS, Journal
from llava.mezo.journal.replay import main as replay
from llava.samples.dataset import make_supervised_data_module
from llava.train.flags.parsing import parse_arguments
from llava.train.train import build, train
from llava.train.zo import extended_trainer, journaled_run, resume_points

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("no_picture_of_the_loss")]

Flags = Callable[..., list[str]]


class Killed(BaseException):
    """Stands for kill -9: nothing of ours runs after it, since the trainer's own clean-up is switched off."""


def equal_files(one: Path, other: Path) -> set[str]:
    """Names of the files that both folders have, which must be the same bytes."""
    names = {path.name for path in one.iterdir() if path.is_file() and (other / path.name).is_file()}
    assert {name for name in names if (one / name).read_bytes() != (other / name).read_bytes()} == set()
    return names


@pytest.fixture(scope="module")
def base(run_flags: Flags, small_tower_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A whole LLaVA model, so that a run needs nothing beside it."""
    folder = tmp_path_factory.mktemp("base") / "llava-small"
    changes = {"max_steps": 1, "save_strategy": "no", "mm_tunable_parts": "mm_mlp_adapter,mm_language_model"}
    train(argv=run_flags(output_dir=folder, vision_tower=small_tower_folder, disable_tqdm=True, **changes))
    for path in (folder / "trainer_state.json", folder / "report.json"):
        path.unlink()
    return folder


@pytest.fixture(scope="module")
def plain_flags(run_flags: Flags, base: Path) -> Flags:
    """Command line of eight zeroth-order steps in bfloat16 on the whole model."""

    values = {
        "model_name_or_path": base,
        "vision_tower": None,
        "trainer_mode": "zo",
        "per_device_train_batch_size": 2,
        "disable_tqdm": True,
        "mm_tunable_parts": "mm_mlp_adapter,mm_language_model",
        "max_steps": 8,
        "logging_steps": 3,
        "learning_rate": 1e-3,
        "lr_scheduler_type": "cosine",
        "weight_decay": 0.1,
    }
    return functools.partial(run_flags, **values)


@pytest.fixture()
def flags(plain_flags: Flags, tmp_path: Path) -> Flags:
    return functools.partial(plain_flags, output_dir=tmp_path / "out")


@pytest.fixture()
def killed(flags: Flags, monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Run with these changes until a step, and die there at one of its moments.

    `resume_seconds`: how long a run goes on between its resume points, where it is not the usual time.
    """

    def run(step: int, moment: str, resume_seconds: float = journaled_run.RESUME_SECONDS, **changes: Any) -> None:
        class Dies(TrainerCallback):
            def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
                if moment == "after the update" and state.global_step == step:
                    raise Killed

            def on_log(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
                if moment == "after the log" and state.global_step == step:
                    raise Killed

        original, append = extended_trainer.ExtendedMeZOTrainer.__init__, Journal.append

        def init(self: Any, *args: Any, **kwargs: Any) -> None:
            original(self, *args, **kwargs)
            self.add_callback(Dies())

        def appended(self: Journal, record: Any) -> None:
            append(self, record)
            if moment == "before the update" and record.step == step - 1:
                raise Killed

        with monkeypatch.context() as patch, pytest.raises(Killed):
            patch.setattr(extended_trainer.ExtendedMeZOTrainer, "__init__", init)
            patch.setattr(Journal, "append", appended)
            patch.setattr(journaled_run, "RESUME_SECONDS", resume_seconds)
            train(argv=flags(**changes))

    return run


def replayed(base: Path, run: Path, output: Path, *flags: str) -> dict[str, torch.Tensor]:
    """The weights that a run's journal gives on its base."""
    words = ["--model-path", str(base), "--journal", str(run / "mezo_journal"), "--output-dir", str(output)]
    assert replay([*words, *flags]) == 0
    return weights(output)


def moved(now: dict[str, torch.Tensor], before: dict[str, torch.Tensor]) -> bool:
    """Whether a weight has another value than the one it had, in the dtype that it has now."""
    assert now.keys() == before.keys()
    return any(not torch.equal(weight, before[name].to(weight.dtype)) for name, weight in now.items())


def history(folder: Path) -> list[dict[str, Any]]:
    """What was logged, without times."""
    entries = state_of(folder)["log_history"]
    timed = ("step_time", "train_runtime", "train_steps_per_second", "train_samples_per_second", "train_loss")
    return [{key: value for key, value in entry.items() if key not in timed} for entry in entries]


POINTS: dict[str, dict[str, Any]] = {
    "none": {},
    "every step": {},
    "full checkpoints": {"save_strategy": "steps", "save_steps": 2, "zo_weight_storage": "fixed16"},
}
BATCHES = {"per_device_train_batch_size": 1, "gradient_accumulation_steps": 2}
BATCHES |= {"group_by_modality_length": True, "zo_num_directions": 2}


@pytest.fixture(scope="module")
def never_killed(plain_flags: Flags, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """The folder of a run that goes through; where points make no difference to it, it takes place once."""
    done: dict[str, Path] = {}

    def run(points: str) -> Path:
        key = str(POINTS[points])
        if key not in done:
            folder = tmp_path_factory.mktemp("whole") / "out"
            train(argv=plain_flags(**BATCHES, **POINTS[points], output_dir=folder))
            done[key] = folder
        return done[key]

    return run


@pytest.mark.parametrize(
    ("points", "deaths"),
    [
        ("none", [(2, "before the update"), (4, "after the update"), (6, "after the log")]),
        ("every step", [(2, "after the update"), (3, "after the log"), (5, "before the update")]),
        ("full checkpoints", [(3, "after the log"), (5, "before the update"), (7, "after the update")]),
    ],
    ids=POINTS,
)
def test_a_killed_run_ends_as_the_one_that_was_not(
    points: str, deaths: list[tuple[int, str]], never_killed: Callable[[str], Path], flags: Flags, killed: Any,
    tmp_path: Path,
) -> None:  # fmt: skip
    changes = {**BATCHES, **POINTS[points]}
    whole, out = never_killed(points), tmp_path / "out"
    often = {"resume_seconds": 0.0} if points == "every step" else {}
    for step, moment in deaths:
        killed(step, moment, **often, **changes)
        if points == "every step":
            expected = {f"resume-{step - 1}"}
            assert {path.name for path in (out / "mezo_journal").glob("resume-*")} == expected
        if points == "none":
            assert not list(out.glob("**/resume-*")) + list(out.glob("checkpoint-*"))
    train(argv=flags(**changes))
    assert same(weights(out), weights(whole))
    assert history(out) == history(whole)
    for name in (RECORDS, HEADER):
        assert (out / "mezo_journal" / name).read_bytes() == (whole / "mezo_journal" / name).read_bytes()


@pytest.mark.parametrize("seconds", [0.0, 60.0], ids=["with a resume point", "from the journal alone"])
def test_changed_flags_hold_from_the_first_step_that_is_not_recorded(
    seconds: float, flags: Flags, killed: Any, tmp_path: Path, refused: Callable[..., str]
) -> None:
    changes = {"lr_scheduler_type": "constant", "max_steps": 6}
    killed(4, "after the update", resume_seconds=seconds, **changes)
    assert "--learning_rate 0.001 (now 1e-05)" in refused(train, argv=flags(**changes, learning_rate=1e-5))
    train(argv=flags(**changes, learning_rate=1e-5, resume_with_changes=True))
    rates = [record.rates for record in Journal.read(tmp_path / "out" / "mezo_journal").records]
    assert rates == [(1e-3,)] * 4 + [(1e-5,)] * 2
    (recorded,) = report_of(tmp_path / "out")["changes"]
    assert recorded == {"after_step": 4, "flags": {"learning_rate": [1e-3, 1e-5]}}


@pytest.mark.parametrize(
    "changes",
    [
        {"zo_estimator": "one_point", "zo_rule": "normalized"},
        {"zo_estimator": "fzoo", "zo_noise": "rademacher", "zo_num_directions": 3},
        {"zo_estimator": "per_example", "dataloader_drop_last": True},
        {"zo_estimator": "guided", "zo_num_directions": 3},
        {"zo_estimator": "lowrank", "zo_basis_steps": 2, "zo_rule": "momentum"},
        {"zo_estimator": "svrg", "zo_anchor_steps": 3, "zo_anchor_batches": 2},
        {"zo_rule": "adam", "zo_noise": "rademacher", "zo_window": 3},
        {"zo_rule": "adamu", "zo_window": 3},
        {"zo_tensor_scales": "rms", "zo_batch_growth": "0:2,0.5:4", "lr_scheduler_type": "linear", "warmup_steps": 2},
    ],
    ids=lambda changes: "-".join(map(str, changes.values())),
)
def test_every_algorithm_is_resumed_replayed_and_evaluated_at_its_steps(
    changes: dict[str, Any], flags: Flags, base: Path, killed: Any, tmp_path: Path
) -> None:
    changes = {"weight_decay": 0.0, "max_steps": 6, **changes}
    train(argv=flags(**changes, output_dir=tmp_path / "whole"))
    killed(4, "before the update", **changes)
    train(argv=flags(**changes))
    assert same(weights(tmp_path / "out"), weights(tmp_path / "whole"))
    assert moved(weights(tmp_path / "out"), weights(base))
    assert same(replayed(base, tmp_path / "out", tmp_path / "last"), weights(tmp_path / "out"))
    evaluated = JournaledModel(tmp_path / "out" / "mezo_journal", None)  # as by --all-steps
    loaded = evaluated.load("sdpa")[0]
    for step in (2, 6):
        evaluated.go_to(step)
    assert all(torch.equal(weight, loaded.state_dict()[name]) for name, weight in weights(tmp_path / "out").items())
    used = report_of(tmp_path / "out")["zo_kernel"]
    assert used == ("torch" if changes.get("zo_estimator") == "lowrank" else "numba")
    branch = {**changes, "zo_from_journal": f"{tmp_path / 'out' / 'mezo_journal'}:3", "output_dir": tmp_path / "branch"}
    train(argv=flags(**branch | {"max_steps": 1}))
    assert same(replayed(base, tmp_path / "branch", tmp_path / "b"), weights(tmp_path / "branch"))


@pytest.mark.parametrize("storage", ["native", "fixed16", "fp32"])
def test_replay_writes_the_checkpoint_of_any_step(storage: str, flags: Flags, base: Path, tmp_path: Path) -> None:
    train(argv=flags(save_strategy="steps", save_steps=3, zo_weight_storage=storage))
    assert not list((tmp_path / "out" / "mezo_journal" / "model").glob("*.safetensors"))  # the base has all of it
    assert same(replayed(base, tmp_path / "out", tmp_path / "last"), weights(tmp_path / "out"))
    assert len(equal_files(tmp_path / "last", tmp_path / "out")) >= 5
    words = ["--model-path", str(base), "--journal", str(tmp_path / "out" / "mezo_journal")]
    assert replay([*words, "--output-dir", str(tmp_path / "all"), "--every", "3"]) == 0
    for step in (3, 6):
        saved = tmp_path / "out" / f"checkpoint-{step}"
        assert same(weights(tmp_path / "all" / f"step-{step}"), weights(saved, "model.safetensors"))
        equal_files(tmp_path / "all" / f"step-{step}", tmp_path / "out" / f"checkpoint-{step}")


@pytest.mark.parametrize("adapter", ["lora", "dora", "ia3", "pissa", "milora", "mora", "prefix", "prompt", "houlsby"])
def test_an_adapter_run_goes_on_from_its_journal(adapter: str, flags: Flags, killed: Any, tmp_path: Path) -> None:
    changes = {"adapter": adapter, "lora_r": 4, "adapter_tokens": 4 if adapter in ("prefix", "prompt") else None}
    train(argv=flags(**changes, output_dir=tmp_path / "whole"))
    killed(5, "after the update", **changes)
    train(argv=flags(**changes))
    assert same(weights(tmp_path / "out"), weights(tmp_path / "whole"))


def test_replayed_steps_are_in_no_time_and_more_steps_begin_from_the_journal(
    flags: Flags, killed: Any, tmp_path: Path, refused: Any
) -> None:
    changes = {"logging_steps": 1}
    killed(5, "after the update", **changes)
    train(argv=flags(**changes))
    entries = state_of(tmp_path / "out")["log_history"]
    timed = {entry["step"]: "step_time" in entry for entry in entries if "loss" in entry}
    assert timed == {step: step > 5 for step in timed} and {5, 6} <= set(timed)
    journal = tmp_path / "out" / "mezo_journal"
    assert f"--zo_from_journal {journal}:{max(timed)}" in refused(train, argv=flags(**changes))


def test_a_model_in_a_relative_folder_is_found_from_anywhere(
    flags: Flags, base: Path, monkeypatch: Any, tmp_path: Path
) -> None:
    monkeypatch.chdir(base.parent)
    train(argv=flags(adapter="lora", lora_r=4, max_steps=1, model_name_or_path=base.name))
    adapter = json.loads((tmp_path / "out" / "adapter_config.json").read_text())
    assert adapter["base_model_name_or_path"] == str(base)
    assert Journal.read(tmp_path / "out" / "mezo_journal").header.model == str(base)


def test_a_run_can_branch_off(flags: Flags, base: Path, killed: Any, tmp_path: Path) -> None:
    train(argv=flags(output_dir=tmp_path / "first"))
    start = tmp_path / "first" / "mezo_journal"
    changes = {"zo_from_journal": f"{start}:5", "learning_rate": 3e-3, "zo_seed": 9, "zo_weight_storage": "fp32"}
    changes |= {"max_steps": 3, "mm_tunable_parts": "mm_language_model"}
    killed(2, "after the update", **changes)
    shutil.rmtree(tmp_path / "first")  # a branch has what it needs
    train(argv=flags(**changes))
    assert [len(one.records) for one in Journal.read(tmp_path / "out" / "mezo_journal").chain()] == [5, 3]
    last = replayed(base, tmp_path / "out", tmp_path / "last")
    assert same(last, weights(tmp_path / "out"))
    assert not same(replayed(base, tmp_path / "out", tmp_path / "zero", "--step", "0"), last)


def test_a_branch_of_a_lora_run_starts_from_its_adapter(flags: Flags, tmp_path: Path) -> None:
    changes = {"lora_enable": True, "lora_r": 4}
    train(argv=flags(**changes, output_dir=tmp_path / "first", max_steps=4))
    start = str(tmp_path / "first" / "mezo_journal")
    train(argv=flags(**changes, max_steps=2, seed=7, learning_rate=0.0, zo_from_journal=start))
    assert same(weights(tmp_path / "out"), weights(tmp_path / "first"))


def test_points_that_cannot_be_right_are_passed_over(flags: Flags, killed: Any, tmp_path: Path) -> None:
    train(argv=flags(output_dir=tmp_path / "whole"))
    killed(5, "after the update", resume_seconds=0.0)
    journal = tmp_path / "out" / "mezo_journal"
    (journal / "resume.partial").mkdir()
    shutil.copytree(journal / "resume-4", journal / "resume-7")  # beyond the records
    only_model = tmp_path / "out" / "checkpoint-5"
    only_model.mkdir()
    (only_model / "trainer_state.json").write_text("{}")
    assert resume_points.start_of(tmp_path / "out") == journal / "resume-4"
    train(argv=flags())
    assert same(weights(tmp_path / "out"), weights(tmp_path / "whole"))


BAD: dict[str, tuple[dict[str, Any], str]] = {
    "another base": ({}, "fingerprint"),
    "another eps": ({"zo_eps": 1e-2}, "--zo_eps 0.001 (now 0.01)"),
    "another weight decay": ({"weight_decay": 0.2}, "another groups"),
    "a regular run": ({"trainer_mode": "regular"}, "holds a MeZO run with a journal"),
    "a flipped bit": ({}, "record 2 does not check"),
}


@pytest.mark.parametrize("case", BAD)
def test_what_does_not_fit_is_refused(
    case: str, flags: Flags, base: Path, killed: Any, tmp_path: Path, refused: Any
) -> None:
    killed(5, "after the update")
    changes, message = BAD[case]
    records = tmp_path / "out" / "mezo_journal" / RECORDS
    if case == "a flipped bit":
        data = bytearray(records.read_bytes())
        data[2 * (len(data) // 5) + 9] ^= 1
        records.write_bytes(data)
    if case == "another base":
        file = shutil.copytree(base, tmp_path / "other") / "model.safetensors"
        tensors = load_file(file)
        tensors["model.norm.weight"] += 1
        save_file(tensors, file, metadata={"format": "pt"})
        changes = {"model_name_or_path": file.parent}
    before = records.read_bytes()
    assert message in refused(train, argv=flags(**changes, resume_with_changes=True))
    assert records.read_bytes() == before


def test_replay_refuses_another_base(flags: Flags, base: Path, tmp_path: Path, capsys: Any) -> None:
    train(argv=flags(max_steps=2))
    words = ["--journal", str(tmp_path / "out" / "mezo_journal"), "--output-dir", str(tmp_path / "x")]
    assert replay(["--model-path", str(tmp_path / "out"), *words]) == 2
    assert "fingerprint" in capsys.readouterr().err
    assert replay(["--model-path", str(base), *words, "--step", "3"]) == 2
    assert "has the steps 0 to 2" in capsys.readouterr().err
    assert replay(["--model-path", str(tmp_path / "nowhere"), *words]) == 2
    cut = shutil.copytree(base, tmp_path / "cut")
    (cut / "model.safetensors").write_bytes((base / "model.safetensors").read_bytes()[:-10])
    capsys.readouterr()
    assert replay(["--model-path", str(cut), *words]) == 2
    assert "model.safetensors is cut off" in capsys.readouterr().err
    (cut / "model.safetensors").write_text("version https://git-lfs.github.com/spec/v1")
    assert replay(["--model-path", str(cut), *words]) == 2
    assert "is no safetensors file" in capsys.readouterr().err
    assert not (tmp_path / "x").exists()
    (tmp_path / "file").touch()
    words[-1] = str(tmp_path / "file" / "x")
    assert replay(["--model-path", str(base), *words]) == 2
    assert f"error: --output-dir {words[-1]} cannot be written" in capsys.readouterr().err


@pytest.mark.slow
def test_an_adapter_branches_off_with_its_own_shape_and_base(
    flags: Flags, base: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture, capsys: pytest.CaptureFixture[str]
) -> None:
    lora = {"adapter": "lora", "lora_r": 2, "max_steps": 1}
    train(argv=flags(**lora, output_dir=tmp_path / "first"))
    branch = {**lora, "zo_from_journal": tmp_path / "first" / "mezo_journal"}
    with pytest.raises(SystemExit):
        train(argv=flags(**branch | {"lora_r": 4}, output_dir=tmp_path / "other_rank"))
    assert re.search(r"lora_A\S+ is \[2, \d+\] there, and \[4, \d+\] in this run", capsys.readouterr().err)
    train(argv=flags(**branch, output_dir=tmp_path / "branch"))
    assert "is of a run on" not in caplog.text
    (tmp_path / "moved").symlink_to(base)
    train(argv=flags(**branch, model_name_or_path=tmp_path / "moved", output_dir=tmp_path / "elsewhere"))
    assert f"is of a run on {base}, and this one is on {tmp_path / 'moved'}" in caplog.text


@pytest.mark.parametrize("storage", ["native", "fixed16"])
def test_the_best_step_is_loaded_at_the_end(storage: str, flags: Flags, tmp_path: Path) -> None:
    train(argv=flags(output_dir=tmp_path / "first", max_steps=2))
    # a branch that trains less than what it starts from
    changes: dict[str, Any] = {"zo_weight_storage": storage}
    changes |= {"zo_from_journal": tmp_path / "first" / "mezo_journal", "mm_tunable_parts": "mm_language_model"}
    model_args, data_args, training_args = parse_arguments(flags(**changes, save_strategy="no"))
    # of a trainer of one's own: the command has no evaluation
    evaluation = {"load_best_model_at_end": True, "eval_strategy": "steps", "eval_steps": 2}
    training_args = dataclasses.replace(training_args, **evaluation)
    model, tokenizer = build(model_args, data_args, training_args)
    data = make_supervised_data_module(tokenizer, data_args)
    data["eval_dataset"] = data["train_dataset"]
    trainer = extended_trainer.ExtendedMeZOTrainer(model=model, args=training_args, processing_class=tokenizer, **data)
    shown = {2: 3.0, 4: 1.0, 6: 1.0, 8: 2.0}

    def evaluate(*args: Any, **kwargs: Any) -> dict[str, float]:
        metrics = {"eval_loss": shown[trainer.state.global_step]}
        trainer.log(dict(metrics))
        return metrics

    trainer.evaluate = evaluate
    trainer.train()
    assert len(Journal.read(tmp_path / "out" / "mezo_journal").records) == 8
    expected = replayed(Path(model_args.model_name_or_path), tmp_path / "out", tmp_path / "four", "--step", "4")
    assert all(torch.equal(p, expected[name]) for name, p in model.named_parameters() if name in expected)
    assert not list((tmp_path / "out").glob("checkpoint-*"))


@pytest.mark.parametrize("storage", ["native", "fp32"])
def test_steps_are_evaluated_without_writing_a_model(
    storage: str, flags: Flags, base: Path, golden: Path, tmp_path: Path, refused: Any
) -> None:
    train(argv=flags(max_steps=4, learning_rate=3e-1, zo_weight_storage=storage))
    journal = str(tmp_path / "out" / "mezo_journal")
    records = [
        {"id": k, "conversations": [{"from": "human", "value": word}, {"from": "gpt", "value": "x"}]}
        for k, word in enumerate(("one", "two", "three"))
    ]
    (tmp_path / "data.json").write_text(json.dumps(records))
    words = ["--data", str(tmp_path / "data.json"), "--image-folder", str(tmp_path), "--max-new-tokens", "4"]

    def predictions(name: str, *more: str) -> list[str]:
        accuracy.main([*more, *words, "--output", str(tmp_path / f"{name}.jsonl")])
        return [json.loads(line)["prediction"] for line in (tmp_path / f"{name}.jsonl").read_text().splitlines()]

    after = predictions("after", "--model-path", str(tmp_path / "out"))
    assert predictions("last", "--journal", journal) == after
    before = predictions("before", "--model-path", str(base))
    assert before != after
    accuracy.main(["--journal", journal, "--all-steps", "2", *words, "--output", str(tmp_path / "all.jsonl")])
    assert [entry["step"] for entry in json.loads((tmp_path / "all.json").read_text())] == [0, 2, 4]
    assert (tmp_path / "all.png").stat().st_size > 1000
    for step, expected in ((0, before), (4, after)):
        lines = (tmp_path / f"all-step-{step}.jsonl").read_text().splitlines()
        assert [json.loads(line)["prediction"] for line in lines] == expected
    assert "has the steps 0 to 4" in refused(predictions, "bad", "--journal", journal, "--step", "5")


def test_without_a_journal(flags: Flags, tmp_path: Path) -> None:
    train(argv=flags(zo_journal=False, max_steps=2))
    assert not (tmp_path / "out" / "mezo_journal").exists()


def test_losses_that_do_not_move_are_spoken_of(flags: Flags, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level("WARNING", "llava.train.zo"):
        train(argv=flags(max_steps=2, logging_steps=2, zo_eps=1e-30))
    assert "steps 1 to 2: the losses are equal on both sides" in caplog.text
