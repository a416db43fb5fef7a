"""Records as questions: what is asked, what is refused."""

from __future__ import annotations

from pathlib import Path

import pytest

from llava.errors import InputError
from llava.eval.questions import question_and_reference

HUMAN = {"from": "human", "value": "<image>\nWhat?"}
ANSWER = {"from": "gpt", "value": "A cat."}


def test_the_last_answer_is_the_reference():
    turns = [HUMAN, ANSWER, {"from": "human", "value": "Sure?"}, {"from": "gpt", "value": "Yes"}]
    question, reference = question_and_reference({"id": 7, "image": "a.png", "conversations": turns}, 0, "dir")
    assert reference == "Yes"
    assert list(question.turns) == [("<image>\nWhat?", "A cat."), ("Sure?", None)]
    assert question.images == [Path("dir/a.png")]
    assert "7" in question.name


def test_other_spellings_of_turns():
    turns = [
        {"role": "system", "content": "Be short."},
        {"role": "user", "content": "Look at <image> please"},
        {"role": "assistant", "content": "Ok"},
        {"role": "user", "content": "no answer to this one"},
    ]
    question, reference = question_and_reference({"image": ["a.png"], "conversations": turns}, 3, "")
    assert (question.system, reference) == ("Be short.", "Ok")
    assert list(question.turns) == [("<image>\nLook at  please", None)]


@pytest.mark.parametrize(
    ("record", "message"),
    [
        ({"id": "x1"}, "x1.*no `conversations`"),
        ({"id": "x2", "conversations": []}, "x2.*`conversations` must be a non-empty list"),
        ({"id": "x3", "conversations": [HUMAN]}, "x3.*alternate"),
        ({"id": "x4", "conversations": [HUMAN, HUMAN, ANSWER]}, "x4.*alternate"),
        ({"id": "x5", "conversations": [HUMAN, {"from": "gpt"}]}, "x5.*turn 1 needs texts under `from` and `value`"),
        ({"id": "x6", "conversations": [HUMAN, ANSWER], "image": 3}, "x6.*`image` must be"),
        ({"conversations": [HUMAN, ANSWER], "video": "v.mp4"}, "record 5.*videos"),
    ],
)
def test_unusable_records_are_named(record, message):
    with pytest.raises(InputError, match=message):
        question_and_reference(record, 5, "")
