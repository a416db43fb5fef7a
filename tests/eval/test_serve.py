"""The page: what it shows becomes a conversation again, and an answer comes piece by piece."""

from __future__ import annotations

from pathlib import Path

import pytest

from llava import serve
from llava.errors import InputError
from llava.eval.dialogue import Dialogue


class Speaker:
    """Stands in for an `Answerer` that says the same words each time; notes how many came out."""

    tokenizer = None

    def __init__(self):
        self.said = 0

    def answer(self, questions, decoding, streamer):
        for word in ("one ", "two ", "three"):
            streamer._show(word)
            self.said += 1
        return ["one two three"]


@pytest.fixture
def dialogue(monkeypatch):
    speaker = Speaker()
    monkeypatch.setattr(
        Dialogue.ask.__globals__["Words"], "__init__", lambda self, _, show: setattr(self, "_show", show)
    )
    return lambda images: Dialogue(speaker, images)


def shown(role, *parts):
    contents = [
        {"file": {"path": p[1:]}, "type": "file"} if p[0] == "@" else {"text": p, "type": "text"} for p in parts
    ]
    return {"role": role, "content": contents}


HISTORY = [
    shown("user", "@old.png", "And this?"),
    shown("assistant", "A dog."),
    shown("user", "@a.png", "@b.png"),
    shown("user", "What is shown?"),
    shown("assistant", "A cat."),
    {"role": "user", "content": "Sure?"},
    {"role": "assistant", "content": "Yes."},
]


def test_a_conversation_begins_with_the_last_pictures(dialogue):
    found = serve.resumed(dialogue, HISTORY, [])
    assert found.images == [Path("a.png"), Path("b.png")]
    assert found.turns == [("<image>\n<image>\nWhat is shown?", "A cat."), ("Sure?", "Yes.")]


def test_new_pictures_begin_a_new_one(dialogue):
    found = serve.resumed(dialogue, HISTORY, ["c.png"])
    assert (found.images, found.turns) == ([Path("c.png")], [])


def test_without_pictures_all_of_it_counts(dialogue):
    found = serve.resumed(dialogue, HISTORY[5:], [])
    assert (found.images, found.turns) == ([], [("Sure?", "Yes.")])


def test_an_unanswered_question_is_left_out(dialogue):
    assert serve.resumed(dialogue, [*HISTORY[:5], shown("user", "Sure?")], []).turns[1:] == []


def test_an_answer_comes_in_pieces(dialogue):
    talk = dialogue([])
    assert list(serve.answer(talk, "What?")) == ["one ", "one two ", "one two three"]
    assert talk.turns == [("What?", "one two three")]


def test_an_answer_that_nobody_waits_for_ends(dialogue):
    talk = dialogue([])
    pieces = serve.answer(talk, "What?")
    next(pieces)
    pieces.close()  # returns when the model has stopped
    assert talk.answerer.said <= 3
    assert list(serve.answer(talk, "Again?"))[-1] == "one two three"


def test_what_is_wrong_with_a_question_is_said(dialogue):
    with pytest.raises(InputError, match="empty"):
        list(serve.answer(dialogue([]), " "))


def test_refused_without_gradio(monkeypatch, refused):
    monkeypatch.setattr(serve.importlib.util, "find_spec", lambda name: None)
    assert "pip install gradio" in refused(serve.main, ["--model-path", "x"])
