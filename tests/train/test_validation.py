"""Validation while training: what is measured, that a run is not moved by it, the best step, stopping, resuming."""

from __future__ import annotations

import functools
import json
import shutil
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
from finished_runs import logged_steps, report_of, same, state_of, weights

from llava.constants import IGNORE_INDEX
from llava.eval import accuracy
from llava.eval.generation import load_model
from llava.mezo.journal import going_back
from llava.mezo.journal.files import Journal
from llava.mezo.journal.kept import Kept, kept_journals
from llava.mezo.journal.replay import main as replay
from llava.samples.collator import DataCollatorForSupervisedDataset
from llava.train.flags.parsing import parse_arguments
from llava.train.train import train
from llava.train.validation import Validation, validation_set
from llava.train.zo import halved_run, watch

ROOT = Path(__file__).parents[2]
TINY, SCAN = ROOT / "playground" / "tiny-llava-onevision", ROOT / "playground" / "data" / "scan"
Flags = Callable[..., list[str]]

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("no_picture_of_the_loss")]


class Killed(BaseException):
    """Stands for kill -9."""


@pytest.fixture()
def quick(small_run: Flags, golden: Path) -> Flags:
    """Command line of six steps, validated at every second one."""
    usual = {"trainer_mode": None, "gradient_checkpointing": False, "save_strategy": None}
    usual |= {"max_steps": 6, "per_device_train_batch_size": 2}
    data = golden / "fullmodel" / "data" / "data.json"
    return functools.partial(small_run, **usual, eval_data_path=data, eval_steps=2)


@pytest.fixture()
def shown(monkeypatch: pytest.MonkeyPatch) -> Callable[[Mapping[int, float]], list[int]]:
    """Let runs measure these values by step; gives the steps that were measured."""

    def show(values: Mapping[int, float]) -> list[int]:
        asked: list[int] = []

        def measure(self: Validation, run: Any) -> float:
            asked.append(run.state.global_step)
            return values[run.state.global_step]

        monkeypatch.setattr(Validation, "measure", measure)
        return asked

    return show


def points(folder: Path) -> list[tuple[int, float]]:
    return [(one["step"], one["value"]) for one in json.loads((folder / "validation.json").read_text())["history"]]


@pytest.mark.parametrize(("mode", "metric"), [("zo", "loss"), ("regular", "exact")])
def test_a_run_is_not_moved_by_it(mode: str, metric: str, quick: Flags, tmp_path: Path) -> None:
    # regular with dropout, which draws from the generator that a data loader would draw from too
    changes: dict[str, Any] = {"trainer_mode": mode, "save_strategy": "no", "output_dir": tmp_path / "with"}
    changes |= (
        {"adapter": "lora", "lora_r": 4, "lora_dropout": 0.5} if mode == "regular" else {"zo_weight_storage": "fp32"}
    )
    train(argv=quick(**changes, eval_metric=metric, eval_on_start=True))
    changes |= {"eval_data_path": None, "eval_steps": None, "output_dir": tmp_path / "without"}
    train(argv=quick(**changes))
    assert same(weights(tmp_path / "with"), weights(tmp_path / "without"))
    assert [step for step, _ in points(tmp_path / "with")] == [0, 2, 4, 6]
    if mode == "zo":
        files = [tmp_path / name / "mezo_journal" / "records.bin" for name in ("with", "without")]
        assert files[0].read_bytes() == files[1].read_bytes()
    said = report_of(tmp_path / "with")["validation"]
    assert (said["metric"], said["weights_of_step"]) == (metric, 6)
    assert [(one["step"], one["value"]) for one in said["history"]] == points(tmp_path / "with")
    assert "validation" not in report_of(tmp_path / "without")


@pytest.mark.parametrize(("mode", "storage"), [("zo", "fp32"), ("regular", "native")])
def test_the_loss_is_the_mean_of_all_supervised_tokens(
    mode: str, storage: str, quick: Flags, golden: Path, tmp_path: Path
) -> None:
    changes: dict[str, Any] = {"trainer_mode": mode, "max_steps": 2, "per_device_eval_batch_size": 4}
    changes |= {"zo_weight_storage": storage} if mode == "zo" else {"dataloader_num_workers": 1}
    words = quick(**changes, save_strategy="no", mm_feature_cache=tmp_path / "cache")
    train(argv=words)
    model, tokenizer, image_processor = load_model(str(tmp_path / "out"), None, "auto")
    _, data_args, _ = parse_arguments(words)
    data_args.image_processor, data_args.is_multimodal = image_processor, True
    file = golden / "fullmodel" / "data" / "data.json"
    dataset = validation_set(tokenizer, data_args, [(str(file), json.loads(file.read_text()))])
    total, count = 0.0, 0
    for index in range(len(dataset)):
        batch = DataCollatorForSupervisedDataset(tokenizer)([dataset[index]])
        tokens = int((batch["labels"][:, 1:] != IGNORE_INDEX).sum())
        total, count = total + float(model(**batch).loss.detach()) * tokens, count + tokens
    [(step, value)] = points(tmp_path / "out")
    assert step == 2 and value == pytest.approx(total / count, rel=1e-5)


def length(predictions: Sequence[str], references: Sequence[str], records: Sequence[Mapping[str, Any]]) -> list[float]:
    """A metric of somebody's own."""
    return [
        len(reference) + 0.0 * len(prediction) for prediction, reference in zip(predictions, references, strict=True)
    ]


@pytest.mark.parametrize("mode", ["zo", "regular"])
def test_answers_are_those_of_the_evaluation(mode: str, tiny_run: Flags, tmp_path: Path) -> None:
    records = json.loads((SCAN / "val.json").read_text())[:5]
    (tmp_path / "val.json").write_text(json.dumps(records))
    usual = {"trainer_mode": mode, "mm_tunable_parts": "mm_language_model", "version": "qwen_1_5", "max_steps": 1}
    usual |= {"train_on_answers_only": True, "model_max_length": 512, "attn_implementation": "sdpa"}
    usual |= {"gradient_checkpointing": False, "bf16": mode == "regular", "learning_rate": 1e-4, "save_strategy": "no"}
    train(
        argv=tiny_run(**usual, data_path=SCAN / "train.json", eval_data_path=tmp_path / "val.json", eval_metric="exact")
    )
    [(_, value)] = points(tmp_path / "out")
    words = ["--model-path", str(tmp_path / "out"), "--data", str(tmp_path / "val.json"), "--image-folder", str(SCAN)]
    accuracy.main([*words, "--output", str(tmp_path / "answers.jsonl")])
    answers = json.loads((tmp_path / "answers.json").read_text())
    assert 0 < value == answers["accuracy"]


def test_a_metric_of_ones_own(quick: Flags, golden: Path, tmp_path: Path) -> None:
    train(argv=quick(trainer_mode="zo", max_steps=1, eval_steps=1, eval_metric=f"{__name__}:length"))
    records = json.loads((golden / "fullmodel" / "data" / "data.json").read_text())
    lengths = [len(record["conversations"][-1]["value"]) for record in records]
    assert points(tmp_path / "out") == [(1, sum(lengths) / len(lengths))]


ADAPTER = {"adapter": "lora", "lora_r": 4}


@pytest.mark.parametrize(
    "changes",
    [{"zo_weight_storage": "fixed16", "bf16": True}, ADAPTER, {"save_strategy": "steps", "save_steps": 3}],
    ids=["fixed16", "lora", "saved"],
)
def test_the_best_step_comes_from_the_journal(
    changes: dict[str, Any], quick: Flags, shown: Any, tmp_path: Path
) -> None:
    shown({2: 3.0, 4: 1.0, 6: 1.0})
    words = quick(trainer_mode="zo", load_best_model_at_end=True, **changes)
    train(argv=words)
    journal = Journal.read(tmp_path / "out" / "mezo_journal")
    flags = ["--model-path", journal.header.model, "--journal", str(journal.folder)]
    assert replay([*flags, "--step", "4", "--output-dir", str(tmp_path / "four")]) == 0
    assert len(journal.records) == 6 and same(weights(tmp_path / "four"), weights(tmp_path / "out"))
    said = report_of(tmp_path / "out")["validation"]
    assert (said["best_step"], said["best"], said["weights_of_step"]) == (4, 1.0, 4)


@pytest.mark.parametrize("changes", [{"bf16": True}, ADAPTER, {"mm_tunable_parts": "mm_mlp_adapter"}])
def test_the_best_step_comes_from_its_checkpoint(
    changes: dict[str, Any], quick: Flags, shown: Any, tmp_path: Path
) -> None:
    shown({2: 0.5, 4: 0.75, 6: 0.75})
    train(argv=quick(load_best_model_at_end=True, eval_metric="exact", **changes))
    for path in (tmp_path / "out").glob("*.safetensors"):
        assert same(weights(tmp_path / "out" / "checkpoint-4", path.name), weights(tmp_path / "out", path.name))
    assert report_of(tmp_path / "out")["validation"]["weights_of_step"] == 4


@pytest.mark.parametrize("moment", ["while it is measured", "after it is written"])
@pytest.mark.parametrize("mode", ["zo", "regular"])
def test_a_killed_run_goes_on_with_its_curve(
    mode: str, moment: str, quick: Flags, shown: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    values = {1: 2.0, 2: 1.0, 3: 1.5, 4: float("nan"), 5: 1.0, 6: 0.5}
    changes = {"trainer_mode": mode, "eval_steps": 1, "early_stopping_patience": 3, "load_best_model_at_end": True}
    asked = shown(values)
    if moment == "while it is measured":
        measure = Validation.measure

        def dies(self: Validation, run: Any) -> float:
            if run.state.global_step == 4:
                raise Killed
            return measure(self, run)

        monkeypatch.setattr(Validation, "measure", dies)
    else:
        log = "llava.train.validated_run.ValidatedRun._tell"

        def tell(self: Any, seconds: float) -> None:
            if self.state.global_step == 4:
                raise Killed

        monkeypatch.setattr(log, tell)
    with pytest.raises(Killed):
        train(argv=quick(**changes))
    monkeypatch.undo()
    written = 3 if moment == "while it is measured" else 4
    assert asked == list(range(1, written + 1)) and len(points(tmp_path / "out")) == written
    again = shown(values)
    train(argv=quick(**changes))
    # a regular run goes on from its checkpoint of step 3
    assert again == ([4, 5] if mode == "regular" or written == 3 else [5])
    assert points(tmp_path / "out") == [(1, 2.0), (2, 1.0), (3, 1.5), (4, None), (5, 1.0)]
    said = report_of(tmp_path / "out")
    assert (said["steps"], said["validation"]["weights_of_step"]) == (5, 2)
    assert state_of(tmp_path / "out")["global_step"] == 5


def test_a_run_that_goes_back_forgets_what_was_validated_since(
    quick: Flags, shown: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    reasons = iter(["diverged by step 6"])  # once alone
    monkeypatch.setattr(watch, "WINDOW", 2)
    monkeypatch.setattr(watch, "diverging", lambda losses, *_: next(reasons, None) if len(losses) == 6 else None)
    kept_then: list[list[int]] = []

    def go_back(journal: Journal, step: int) -> Kept:
        kept_then.append([one for one, _ in points(tmp_path / "out")])
        return going_back.go_back(journal, step)

    monkeypatch.setattr(halved_run, "go_back", go_back)
    asked = shown({step: 1 / step for step in (2, 4, 6, 8)})
    changes = {"trainer_mode": "zo", "max_steps": 8, "zo_on_divergence": "halve", "load_best_model_at_end": True}
    train(argv=quick(**changes))
    (kept,) = kept_journals(tmp_path / "out" / "mezo_journal")
    assert kept_then == [[step for step in (2, 4) if step <= kept.back_to]]
    assert asked == [2, 4, *(step for step in (2, 4, 6, 8) if step > kept.back_to)]  # what diverged is not validated
    assert [step for step, _ in points(tmp_path / "out")] == [2, 4, 6, 8]
    assert report_of(tmp_path / "out")["halvings"] == [{"after_step": 6, "back_to_step": kept.back_to}]
    assert [entry["step"] for entry in logged_steps(tmp_path / "out")] == list(range(1, 9))


def test_a_run_that_had_stopped_early_takes_no_further_step(quick: Flags, shown: Any, tmp_path: Path) -> None:
    """It was killed after its last checkpoint, and before the model was saved."""
    values = {1: 1.0, 2: 2.0, 3: 3.0}
    changes = {"eval_steps": 1, "early_stopping_patience": 2, "save_steps": 1}
    shown(values)
    train(argv=quick(**changes))
    whole = shutil.copytree(tmp_path / "out", tmp_path / "whole")
    for name in ("trainer_state.json", "report.json", "model.safetensors"):
        (tmp_path / "out" / name).unlink()
    asked = shown(values)
    train(argv=quick(**changes))
    assert not asked and report_of(tmp_path / "out")["steps"] == 3 and same(weights(tmp_path / "out"), weights(whole))


def test_epochs(quick: Flags, shown: Any, tmp_path: Path) -> None:
    asked = shown({3: 1.0, 6: 2.0, 7: 3.0})
    train(argv=quick(trainer_mode="zo", eval_strategy="epoch", eval_steps=None, max_steps=7))
    assert asked == [3, 6, 7]


@pytest.mark.parametrize("steps", [7, 6])
def test_an_epoch_is_validated_also_where_the_run_was_killed_before_that(
    steps: int, quick: Flags, shown: Any, tmp_path: Path
) -> None:
    """Its checkpoint is saved first; at the end of the run, and of an epoch within it."""
    changes = {"eval_strategy": "epoch", "eval_steps": None, "max_steps": steps, "save_steps": 3}
    out, values = tmp_path / "out", {3: 1.0, 6: 2.0, 7: 3.0}
    shown(values)
    train(argv=quick(**changes))
    expected = points(out), [entry for entry in state_of(out)["log_history"] if "eval_loss" in entry]
    for last in (3, steps):
        for path in [*out.glob("checkpoint-*"), out / "trainer_state.json"]:
            if path.is_file():
                path.unlink()
            elif int(path.name.removeprefix("checkpoint-")) > last:
                shutil.rmtree(path)
        curve = json.loads((out / "validation.json").read_text())
        curve["history"] = [point for point in curve["history"] if point["step"] < last]
        (out / "validation.json").write_text(json.dumps(curve))
        train(argv=quick(**changes))
        found = points(out), [entry for entry in state_of(out)["log_history"] if "eval_loss" in entry]
        assert found == expected


def test_another_curve_is_not_gone_on_with(
    quick: Flags, shown: Any, golden: Path, tmp_path: Path, refused: Callable[..., str]
) -> None:
    shown(dict.fromkeys(range(7), 1.0))
    train(argv=quick(trainer_mode="zo"))
    for name in ("trainer_state.json", "report.json"):
        (tmp_path / "out" / name).unlink()
    fewer = tmp_path / "fewer.json"
    fewer.write_text(json.dumps(json.loads((golden / "fullmodel" / "data" / "data.json").read_text())[:2]))
    for changes, text in (
        ({"eval_metric": "exact"}, "--eval_metric loss"),
        ({"eval_data_path": fewer}, "other records"),
    ):
        said = refused(train, argv=quick(trainer_mode="zo", **changes))
        assert text in said and "--resume_with_changes True" in said
    train(argv=quick(trainer_mode="zo", eval_data_path=fewer, resume_with_changes=True))
    assert report_of(tmp_path / "out")["validation"]["data"] == str(fewer)


def test_records_that_cannot_be_used_are_named_at_once(
    quick: Flags, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, refused: Callable[..., str]
) -> None:
    def not_yet(*args: Any) -> None:
        raise AssertionError("a model was loaded")

    monkeypatch.setattr("llava.train.train.build", not_yet)
    turns = [{"from": "human", "value": "<image>\nWhat?"}, {"from": "gpt", "value": "This."}]
    cases: list[tuple[Any, dict[str, Any], list[str]]] = [
        ([], {}, ["--eval_data_path", "no records"]),
        ([{"id": "a", "image": "nowhere.png", "conversations": turns}], {}, ["val.json", "'a'", "nowhere.png"]),
        ([{"id": "a", "conversations": turns[:1]}], {"eval_metric": "exact"}, ["val.json", "'a'", "gpt"]),
    ]
    for records, changes, texts in cases:
        (tmp_path / "val.json").write_text(json.dumps(records))
        said = refused(train, argv=quick(**changes, eval_data_path=tmp_path / "val.json"))
        assert all(text in said for text in texts), said
    assert "--eval_data_path" in refused(train, argv=quick(eval_data_path=tmp_path / "gone.json"))
