"""Objectives that are not a loss."""

from __future__ import annotations

import functools
import json
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch.nn import functional

import llava.train.train as command
from llava.errors import InputError
from llava.mezo.head import token_errors
from llava.mezo.journal.files import Journal
from llava.mezo.trained import TrainedWeights
from llava.samples import media
from llava.samples.pictures import PictureSettings
from llava.samples.settings import SampleSettings
from llava.train import objectives
from llava.train.flags.parsing import parse_arguments
from llava.train.train import train

Flags = Callable[..., list[str]]
SEEN: list[tuple[list[str], list[str], list[Any]]] = []


def counted(predictions: Sequence[str], references: Sequence[str], records: Sequence[Mapping[str, Any]]) -> list[float]:
    """An objective of the tests: the share of the answer's length that is reached."""
    SEEN.append((list(predictions), list(references), [record["id"] for record in records]))
    return [min(1.0, len(one) / 40) for one in predictions]


def too_few(predictions: Sequence[str], references: Sequence[str], records: Sequence[Any]) -> list[float]:
    return [0.0]


def one_for_all(predictions: Sequence[str], references: Sequence[str], records: Sequence[Any]) -> Any:
    return 0.5


def no_number(predictions: Sequence[str], references: Sequence[str], records: Sequence[Any]) -> list[float]:
    return [float("nan")] * len(records)


def broken(predictions: Sequence[str], references: Sequence[str], records: Sequence[Any]) -> list[float]:
    raise KeyError("no such word")


def of_two(predictions: Sequence[str], references: Sequence[str]) -> list[float]:
    return [0.0] * len(predictions)


@pytest.fixture()
def flags(text_run: Flags) -> Flags:
    return functools.partial(text_run, max_steps=3, per_device_train_batch_size=2, zo_eps=0.05)


def test_scores() -> None:
    assert objectives.exact_match(["Yes.", "no"], ["yes", "yes"], [{}, {}]) == [1, 0]
    assert objectives.f1(["a red car", "", "x"], ["the red car", "", "y"], [{}] * 3) == pytest.approx([2 / 3, 1, 0])


def test_errors_are_those_of_the_whole_logits() -> None:
    torch.manual_seed(0)
    states, head, targets = torch.randn(50, 8), torch.randn(300, 8), torch.randint(0, 300, (50,))
    targets[:20] = functional.linear(states, head)[:20].argmax(1)
    targets[5] = -100
    right = (functional.linear(states, head).argmax(1) == targets).float()
    expected = 1 - right.sum() / 49
    for rows in (7, 64, 300):
        assert float(token_errors(states, head, targets, rows=rows)) == pytest.approx(float(expected))


@pytest.mark.slow
@pytest.mark.parametrize("objective", ["accuracy", "exact_match", "f1", f"{__name__}:counted"])
def test_a_run_takes_it_in_place_of_the_loss(objective: str, flags: Flags, tmp_path: Path) -> None:
    SEEN.clear()
    train(argv=flags(zo_objective=objective))
    records = Journal.read(tmp_path / "out" / "mezo_journal").records
    assert len(records) == 3 and all(0 <= loss <= 1 for record in records for loss in record.losses)
    if objective.endswith("counted"):
        assert len(SEEN) == 6 and len({loss for record in records for loss in record.losses}) > 1
        for predictions, references, ids in SEEN:
            assert len(predictions) == 2 and references == [f"A {k % 2}" for k in ids]
        expected = [1 - sum(min(1.0, len(text) / 40) for text in predictions) / 2 for predictions, _, _ in SEEN]
        assert [loss for record in records for loss in record.losses] == expected


def test_perturbed_weights_are_made_once_for_all_tokens(
    flags: Flags, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[tuple[int, ...]] = []
    perturbed = TrainedWeights.perturbed

    def noted(self: TrainedWeights, numbers: Sequence[int], *rest: Any) -> Any:
        made.append(tuple(numbers))
        return perturbed(self, numbers, *rest)

    monkeypatch.setattr(TrainedWeights, "perturbed", noted)
    train(argv=flags(zo_objective=f"{__name__}:counted", max_steps=1))
    assert len(SEEN[-1][0][0]) > 0  # more than one token
    assert len(made) == 2 * len(set(made))


@pytest.mark.parametrize(
    ("objective", "message"),
    [
        ("bleu", "allowed are loss, classification, accuracy, exact_match, f1, or MODULE:FUNCTION"),
        ("nowhere:f", "cannot be imported"),
        ("math:nothing", "cannot be imported"),
        ("math:pi", "pi is no function"),
        (f"{__name__}:of_two", r"of_two must take \(predictions, references, records\): too many"),
        ("no_syntax:f", r"cannot be imported \(invalid syntax"),
        ("exits:f", r"cannot be imported \(3\)"),
        ("../exits:f", "cannot be imported"),
    ],
)
def test_unknown_ones_are_refused_before_loading(
    objective: str, message: str, flags: Flags, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(str(tmp_path))
    (tmp_path / "no_syntax.py").write_text("def f(:\n")
    (tmp_path / "exits.py").write_text("import sys\nsys.exit(3)\n")
    with pytest.raises(InputError, match=message):
        parse_arguments(flags(zo_objective=objective))


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("too_few", "the function gave 1 numbers for 2 records"),
        ("one_for_all", "the function gave 0.5, not a list of a number a record"),
        ("no_number", "the function gave nan for record"),
        ("broken", "test_objectives.py:"),
    ],
)
def test_what_a_function_does_wrong_is_one_line(
    name: str, message: str, flags: Flags, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        train(argv=flags(zo_objective=f"{__name__}:{name}"))
    line = capsys.readouterr().err.splitlines()[-1]
    assert line.startswith("error: --zo_objective: ") and message in line


def test_a_function_is_found_where_the_command_was_given(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As by torchrun, which puts the folder of the file that it starts in the path."""
    (tmp_path / "of_this_folder.py").write_text("def f(predictions, references, records): return []\n")
    monkeypatch.setattr(sys, "path", [path for path in sys.path if path not in ("", os.getcwd())])
    monkeypatch.chdir(tmp_path)
    assert objectives.score_of("of_this_folder:f") is not None


def test_records_that_are_no_questions_are_refused_before_loading(
    flags: Flags, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(command, "build", lambda *args: pytest.fail("the model was loaded"))
    words = flags(zo_objective="f1")
    records = json.loads((tmp_path / "data.json").read_text())
    del records[4]["conversations"][0]
    (tmp_path / "data.json").write_text(json.dumps(records))
    with pytest.raises(SystemExit):
        train(argv=words)
    assert "record 4 (number 4): turns must alternate human, gpt" in capsys.readouterr().err


@pytest.mark.slow
@pytest.mark.parametrize("adapter", [None, "prompt"])
def test_predictions_of_a_model_of_text_begin_after_the_prompt(adapter: str | None, flags: Flags) -> None:
    """Its `generate` gives the prompt back, where a LLaVA model's does not."""
    SEEN.clear()
    trained = {"adapter": adapter, "mm_tunable_parts": None, "learning_rate": 1e-3} if adapter else {}
    train(argv=flags(zo_objective=f"{__name__}:counted", vision_tower=None, max_steps=1, **trained))
    assert len(SEEN) == 2 and not any("assistant" in one for predictions, _, _ in SEEN for one in predictions)


@pytest.mark.slow
def test_a_picture_is_opened_once_for_all_points_of_a_step(
    flags: Flags, golden: Path, tmp_path: Path, small_tower_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And once for the sample itself."""
    changes = {"vision_tower": small_tower_folder, "image_folder": golden / "images", "zo_num_directions": 2}
    words = flags(zo_objective="f1", max_steps=2, **changes)
    turns = [{"from": "human", "value": "<image>\n?"}, {"from": "gpt", "value": "A"}]
    records = [{"id": k, "image": "s64x64.png", "conversations": turns} for k in range(4)]
    (tmp_path / "data.json").write_text(json.dumps(records))
    opened: list[Path] = []
    read = media.read_picture

    def noted(file: Path, *rest: Any) -> Any:
        opened.append(file)
        return read(file, *rest)

    monkeypatch.setattr(media, "read_picture", noted)
    monkeypatch.setattr(command, "finish", lambda *args: None)
    train(argv=words)
    assert len(opened) == 2 * 4  # two steps of two records


def words_of(text: str, **more: Any) -> dict[str, list[str]]:
    """A tokenizer."""
    return {"input_ids": text.split()}


def test_pictures_are_read_as_the_training_set_reads_them(monkeypatch: pytest.MonkeyPatch) -> None:
    settings, found = SampleSettings(pictures=PictureSettings(max_image_pixels=7)), []

    def answerer(*args: Any, pictures: PictureSettings, keep: dict[int, Any]) -> Any:
        found.append(pictures)
        return SimpleNamespace(answer=lambda questions, decoding: ["A"] * len(questions))

    monkeypatch.setattr(objectives, "Answerer", answerer)
    score = objectives.GeneratedScore(
        objectives.exact_match, lambda text, **more: {"input_ids": text}, settings, "plain"
    )
    turns = [{"from": "human", "value": "?"}, {"from": "gpt", "value": "A"}]
    assert score(None, {objectives.RECORDS: [{"conversations": turns}]}) == 0
    assert found == [settings.pictures]


def test_answers_longer_than_what_is_generated_are_told_of_once(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    answers = SimpleNamespace(answer=lambda questions, decoding: ["A"] * len(questions))
    monkeypatch.setattr(objectives, "Answerer", lambda *args, **more: answers)
    settings = SampleSettings()
    score = objectives.GeneratedScore(
        objectives.f1, lambda text, **more: {"input_ids": text.split()}, settings, "plain"
    )
    turns = [{"from": "human", "value": "?"}, {"from": "gpt", "value": "A " * 33}]
    for _ in range(2):
        score(None, {objectives.RECORDS: [{"conversations": turns}]})
    (line,) = caplog.messages
    assert "an answer of the data has 33 tokens, and those that are generated end after 32" in line
