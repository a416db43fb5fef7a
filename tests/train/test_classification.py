"""`--zo_objective classification`: the loss among the answers of the training set."""

from __future__ import annotations

import functools
import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

import llava.train.train as command
from llava.errors import InputError
from llava.mezo.journal.files import Journal
from llava.train.flags.parsing import parse_arguments
from llava.train.train import train, trainer_of

Flags = Callable[..., list[str]]


@pytest.fixture()
def flags(text_run: Flags) -> Flags:
    """Six records of two answers, of a model of text."""
    own = {"zo_objective": "classification", "train_on_answers_only": True, "max_steps": 3, "zo_eps": 1e-3}
    return functools.partial(text_run, per_device_train_batch_size=2, **own)


@pytest.mark.parametrize("vision", [True, False])
def test_losses_of_a_run_are_among_the_answers(vision: bool, flags: Flags, tmp_path: Path) -> None:
    """With two answers and random weights about log 2, where a loss over the vocabulary is about log 916.

    A LLaVA model is asked by what its layout gives, one of text by its own forward.
    """
    train(argv=flags(**({} if vision else {"vision_tower": None})))
    losses = [loss for record in Journal.read(tmp_path / "out" / "mezo_journal").records for loss in record.losses]
    assert len(losses) == 6 and all(abs(loss - math.log(2)) < 0.2 for loss in losses)


@pytest.mark.parametrize("vision", [True, False])
def test_a_rate_is_looked_for_by_the_loss_among_the_answers(vision: bool, flags: Flags) -> None:
    given = flags(learning_rate="auto", **({} if vision else {"vision_tower": None}))
    model_args, data_args, training_args = parse_arguments(given)
    trainer: Any = trainer_of(model_args, data_args, None, training_args)
    trainer.create_optimizer()
    batch = next(iter(trainer.get_train_dataloader()))
    with torch.no_grad():
        assert abs(float(trainer.step_loss(batch)) - math.log(2)) < 0.2
        assert abs(float(trainer.validation_loss(batch)) - math.log(916)) < 1


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"train_on_answers_only": False}, "--train_on_answers_only False supervises markers .* give --train_on_answ"),
        ({"adapter": "prompt", "mm_tunable_parts": None}, "--zo_objective classification excludes --adapter prompt"),
    ],
)
def test_flags_that_exclude_it(changes: dict[str, Any], message: str, flags: Flags) -> None:
    with pytest.raises(InputError, match=message):
        parse_arguments(flags(**changes))


@pytest.mark.parametrize("vision", [True, False])
def test_an_answer_that_is_cut_off_is_named(
    vision: bool, flags: Flags, tmp_path: Path, refused: Callable[..., str]
) -> None:
    """In the training set alone: what is validated is not trained."""
    words = functools.partial(flags, model_max_length=60, **({} if vision else {"vision_tower": None}))
    records = json.loads((tmp_path / "data.json").read_text())
    short = json.dumps(records)
    records[4]["conversations"][0]["value"] = "4 " * 19
    (tmp_path / "data.json").write_text(json.dumps(records))
    said = refused(train, argv=words())
    assert f"{tmp_path}/data.json: record 4 (number 4): its answer ends at token 61, so" in said
    assert "cuts off a part of it, and --zo_objective classification needs all of it" in said
    (tmp_path / "data.json").rename(tmp_path / "val.json")
    (tmp_path / "data.json").write_text(short)
    train(argv=words(eval_data_path=tmp_path / "val.json", overwrite_output_dir=True))


def test_data_without_a_list_of_answers_is_refused_before_loading(
    flags: Flags, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, refused: Callable[..., str]
) -> None:
    monkeypatch.setattr(command, "build", lambda *args: pytest.fail("the model was loaded"))
    words = flags()
    records = json.loads((tmp_path / "data.json").read_text())
    for record in records:
        record["conversations"][1]["value"] = "Yes"
    (tmp_path / "data.json").write_text(json.dumps(records))
    said = refused(train, argv=words)
    assert "data.json: it has 1 different answers (Yes, ...)" in said and "takes 2 to 1000" in said
