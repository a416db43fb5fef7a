"""Free answers to a file of questions."""

from __future__ import annotations

import json

import pytest

from llava.constants import DEFAULT_IMAGE_TOKEN
from llava.errors import InputError
from llava.eval import model_vqa
from llava.eval.generation import Decoding


class Recorder:
    """Stands in for an `Answerer`: remembers the questions and numbers the answers."""

    def __init__(self):
        self.asked = []

    def answer(self, questions, decoding):
        self.asked += questions
        return [f"answer {len(self.asked)}"]


@pytest.fixture
def record():
    turns = [
        {"from": "human", "value": "What?"},
        {"from": "gpt", "value": "A cat"},
        {"from": "human", "value": "Sure?"},
    ]
    metadata = {"question_type": "open", "dataset": "pets"}
    return {"sample_id": 3, "image": ["a.png", "b.png"], "conversations": turns, "metadata": metadata}


def test_each_turn_is_asked_after_the_models_own_answers(record):
    recorder = Recorder()
    rounds = list(model_vqa.ask(recorder, record, "dir", Decoding(), extra_prompt="Look: "))
    assert rounds == [("Look: What?", "answer 1", "A cat"), ("Look: Sure?", "answer 2", None)]
    first, second = recorder.asked
    assert list(first.turns) == [("<image>\n<image>\nLook: What?", None)]
    assert list(second.turns) == [("<image>\n<image>\nLook: What?", "answer 1"), ("Look: Sure?", None)]
    assert [str(path) for path in second.images] == ["dir/a.png", "dir/b.png"]


def test_a_newline_follows_each_tag(record):
    recorder = Recorder()
    record["conversations"][0]["value"] = f"{DEFAULT_IMAGE_TOKEN}{DEFAULT_IMAGE_TOKEN}\nWhat?"
    list(model_vqa.ask(recorder, record, "", Decoding()))
    assert recorder.asked[0].turns[0][0] == "<image>\n<image>\nWhat?"


def test_chunks_are_consecutive_and_complete():
    items = list(range(10))
    parts = [model_vqa.chunk(items, 4, k) for k in range(4)]
    assert [list(part) for part in parts] == [[0, 1, 2], [3, 4, 5], [6, 7, 8], [9]]
    for count, index in ((0, 0), (4, 4), (4, -1)):
        with pytest.raises(InputError, match="--num-chunks"):
            model_vqa.chunk(items, count, index)


@pytest.mark.parametrize(
    "broken",
    [{"conversations": None}, {"conversations": [3]}, {"image": 5}, {"metadata": [1]}, {"metadata": {"a": "\ud800"}}],
)
def test_unusable_samples_are_named(record, broken):
    with pytest.raises(InputError, match=r"sample 3 \(number 0\)"):
        list(model_vqa.ask(Recorder(), record | broken, "", Decoding()))


def test_command_writes_one_line_per_turn(checkpoint, records, tmp_path, monkeypatch, record):
    monkeypatch.setattr(model_vqa, "MAX_NEW_TOKENS", 3)
    record["image"] = [records[0]["image"], records[2]["image"]]
    (tmp_path / "q.json").write_text(json.dumps([record, record]))
    flags = ["--model-path", str(checkpoint), "--image-folder", str(tmp_path), "--temperature", "0"]
    files = ["--question-file", str(tmp_path / "q.json"), "--answers-file", str(tmp_path / "new" / "a.jsonl")]
    model_vqa.main([*flags, *files, "--test_size", "1"])
    lines = [json.loads(line) for line in (tmp_path / "new" / "a.jsonl").read_text().splitlines()]
    assert [(line["sample_id"], line["prompt"], line["gt_response"]) for line in lines] == [
        (3, "What?", "A cat"),
        (3, "Sure?", None),
    ]
    assert lines[0]["dataset"] == "pets" and lines[0]["question_type"] == "open"
    assert lines[0]["model_id"] == checkpoint.name
    assert len({line["shortuuid"] for line in lines}) == 2


def test_flags_have_an_effect(checkpoint, record, tmp_path, refused):
    (tmp_path / "q.json").write_text(json.dumps([record]))
    for flags, message in ((["--conv-mode", "nope"], "qwen_1_5"), (["--test_size", "0"], "--test_size 0")):
        assert message in refused(
            model_vqa.main, ["--model-path", str(checkpoint), "--question-file", str(tmp_path / "q.json"), *flags]
        )
