"""Asking a model about pictures."""

from __future__ import annotations

import io
import json
from pathlib import Path

import pytest

from llava import ask
from llava.errors import InputError
from llava.eval import loading_flags
from llava.eval.dialogue import Dialogue, Words
from llava.eval.generation import Answerer, Decoding, Question

ROOT = Path(__file__).parents[2]
MODEL = ROOT / "playground" / "tiny-llava-onevision"
SCAN = ROOT / "playground" / "data" / "scan"
QUESTION = "Are there signs of a tumor in the image? Yes or No?\nAnswer:"


class Recorder:
    """Stands in for an `Answerer`: remembers the questions and numbers the answers."""

    tokenizer = None

    def __init__(self):
        self.asked = []

    def answer(self, questions, decoding, streamer):
        if "too long" in questions[0].turns[-1][0]:
            raise InputError("too long")
        self.asked += questions
        return [f"answer {len(self.asked)}"]


def picture(number):
    return str(SCAN / json.loads((SCAN / "test.json").read_text())[number]["image"])


def test_a_question_follows_on_those_before_it():
    recorder = Recorder()
    dialogue = Dialogue(recorder, [Path("a.png"), Path("b.png")], system="Be short.")
    assert dialogue.ask("What?") == "answer 1"
    with pytest.raises(InputError, match="too long"):
        dialogue.ask("This is too long")
    dialogue.ask("Sure?")
    first, second = recorder.asked
    assert list(first.turns) == [("<image>\n<image>\nWhat?", None)]
    assert list(second.turns) == [("<image>\n<image>\nWhat?", "answer 1"), ("Sure?", None)]
    assert (second.images, second.system) == ([Path("a.png"), Path("b.png")], "Be short.")


def test_marks_stay_where_they_are_put():
    recorder = Recorder()
    Dialogue(recorder, [Path("a.png")]).ask("Is <image> red?")
    assert recorder.asked[0].turns[0][0] == "Is <image> red?"


def test_words_come_as_they_are_complete(loaded):
    _, tokenizer, _ = loaded
    pieces = []
    words = Words(tokenizer, pieces.append)
    ids = tokenizer("Yes or No, in the image?", return_tensors="pt").input_ids[0]
    words.put(ids[:1])  # the prompt
    for number in ids:
        words.put(number.reshape(1))
    words.end()
    assert "".join(pieces) == "Yes or No, in the image?"
    assert len(pieces) > 3


def test_what_is_shown_is_the_answer(loaded, capsys, monkeypatch):
    """Streamed by the command, from flags or standard input, or in a batch: one answer."""
    model, tokenizer, processor = loading_flags.load_model(str(MODEL), None, "float32")
    asked = [Question(str(n), [(f"<image>\n{QUESTION}", None)], [Path(picture(n))]) for n in range(3)]
    batch = Answerer(model, tokenizer, processor).answer(asked, Decoding(8))
    monkeypatch.setattr(loading_flags, "load_model", lambda *_: (model, tokenizer, processor))
    for number in range(3):
        ask.main(["--model-path", str(MODEL), "--image", picture(number), QUESTION, QUESTION])
        assert capsys.readouterr().out == 2 * f"{batch[number]}\n"
    assert all(batch)
    monkeypatch.setattr("sys.stdin", io.StringIO("Yes or No?\n\nYes or No?\n"))
    ask.main(["--model-path", str(MODEL), "--image", picture(0), "--chat", "--max-new-tokens", "3"])
    assert len(capsys.readouterr().out.splitlines()) == 2
    for errors, said in (("strict", "standard input is not UTF-8"), ("surrogateescape", "half a character")):
        monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(b"Yes\xff?\n"), "utf-8", errors))
        with pytest.raises(SystemExit, match="2"):
            ask.main(["--model-path", str(MODEL)])
        assert said in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--model-path", "nowhere", "x"], "no such folder"),
        (["--model-path", str(MODEL), "--image", "no.png", "x"], "--image no.png: no such file"),
        (["--model-path", str(MODEL), "--top-p", "0.5", "x"], "--top-p 0.5 has no effect"),
        (["--model-path", str(MODEL), "--conv-mode", "new", "x"], "error: --conv-mode 'new' is not a conversation"),
        (["--model-path", str(MODEL), "--step", "3", "x"], "--journal with --step"),
        (["--journal", "nowhere", "--torch-dtype", "float32", "x"], "--journal excludes"),
        (["--model-path", str(MODEL), "--bits", "3", "x"], "--bits 3: allowed are 4, 8, 16"),
        (["--model-path", str(MODEL), "--max-image-pixels", "0", "x"], "--max-image-pixels 0 must be at least 1"),
        (["--model-path", str(MODEL), " "], "a QUESTION is empty"),
        (["--model-path", str(MODEL), "--max-new-tokens", "0", "x"], "--max-new-tokens"),
    ],
)
def test_refused_before_anything_is_loaded(words, said, refused, monkeypatch):
    monkeypatch.setattr(loading_flags, "load_model", None)
    assert said in refused(ask.main, words)
