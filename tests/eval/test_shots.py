"""Demonstrations: drawn by seed, in front of every question with their pictures, and part of what answers are for."""

from __future__ import annotations

import json

import pytest

from llava.errors import InputError
from llava.eval import accuracy
from llava.eval.generation import Answerer
from llava.eval.questions import question_and_reference
from llava.eval.scoring import evaluate
from llava.eval.shots import draw, with_demonstrations


def flags(checkpoint, folder, *more):
    base = ["--model-path", str(checkpoint), "--data", str(folder / "data.json"), "--image-folder", str(folder)]
    return [*base, "--output", str(folder / "out.jsonl"), "--max-new-tokens", "3", *more]


@pytest.fixture
def train(records, tmp_path):
    """The records again, as another file, with answers of its own."""
    changed = json.loads(json.dumps(records))
    for number, record in enumerate(changed):
        record["conversations"][-1]["value"] = f"answer {number}"
    (tmp_path / "train.json").write_text(json.dumps(changed))
    return changed


def test_draws_are_of_the_seed_and_fewer_are_the_first_of_more(train, tmp_path):
    four = [one.answer for one in draw(train, 4, 1, tmp_path)]
    assert [one.answer for one in draw(train, 2, 1, tmp_path)] == four[:2]
    assert len(set(four)) == 4
    orders = {tuple(one.answer for one in draw(train, 6, seed, tmp_path)) for seed in range(4)}
    assert len(orders) > 1
    with pytest.raises(InputError, match="--shots 7: the training set has 6 records"):
        draw(train, 7, 0, tmp_path)


def test_the_prompt_has_the_demonstrations_as_rounds_with_their_pictures(loaded, train, records, tmp_path):
    drawn = draw(train, 2, 3, tmp_path)
    question, _ = question_and_reference(records[0], 0, tmp_path)
    whole = with_demonstrations(question, drawn)
    assert whole.images == [*drawn[0].question.images, *drawn[1].question.images, *question.images]
    rounds = "".join(
        f"<|im_start|>user\n{one.question.turns[0][0]}<|im_end|>\n<|im_start|>assistant\n{one.answer}<|im_end|>\n"
        for one in drawn
    )
    alone = Answerer(*loaded).prompt(question)
    start, asked = alone.split("<|im_start|>user\n")
    assert Answerer(*loaded).prompt(whole) == f"{start}{rounds}<|im_start|>user\n{asked}"


def test_no_demonstrations_change_nothing_and_some_change_the_answers(loaded, train, records, tmp_path):
    def predictions(demonstrations):
        found = evaluate(*loaded, records, tmp_path, progress=False, max_new_tokens=5, demonstrations=demonstrations)
        return [answer["prediction"] for answer in found["answers"]]

    none = evaluate(*loaded, records, tmp_path, progress=False, max_new_tokens=5)
    assert predictions([]) == [answer["prediction"] for answer in none["answers"]]
    assert predictions(draw(train, 3, 0, tmp_path)) != predictions([])


def test_another_system_text_is_refused(train, records, tmp_path):
    question, _ = question_and_reference(records[0], 0, tmp_path)
    train[0]["conversations"].insert(0, {"from": "system", "value": "Be brief."})
    with pytest.raises(InputError, match="its system text differs from that of the demonstration"):
        with_demonstrations(question, draw(train[:1], 1, 0, tmp_path))


def test_the_command_draws_and_remembers_what_it_drew(checkpoint, train, tmp_path, refused):
    shots = ["--shots", "2", "--shots-data", str(tmp_path / "train.json")]
    accuracy.main(flags(checkpoint, tmp_path, *shots))
    settings = json.loads((tmp_path / "out.json").read_text())["settings"]
    assert settings["shots"]["number"] == 2 and settings["shots"]["seed"] == 0
    assert "has answers of another run: shots was" in refused(
        accuracy.main, flags(checkpoint, tmp_path, *shots, "--shots-seed", "1")
    )


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--shots", "2"], "--shots 2 needs --shots-data"),
        (["--shots-data", "train.json"], "--shots-data has no effect without --shots K"),
        (["--shots-seed", "0"], "--shots-seed has no effect without --shots K"),
        (["--max-new-tokens", "0"], "--max-new-tokens 0 must be at least 1"),
        (["--batch-size", "0"], "--batch-size 0 must be at least 1"),
        (["--version", "qwen"], "'qwen' is not a conversation template"),
        (["--shots", "2", "--shots-data", "{}/data.json"], "--shots-data is --data"),
        (["--shots", "-1", "--shots-data", "{}/train.json"], "--shots -1: the training set has 6 records"),
    ],
)
def test_what_cannot_be_drawn_is_refused(more, message, checkpoint, train, tmp_path, refused):
    assert message in refused(accuracy.main, flags(checkpoint, tmp_path, *(word.format(tmp_path) for word in more)))
    assert not (tmp_path / "out.jsonl").exists()
