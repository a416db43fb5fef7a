"""One reader of records: what a key may hold, other names of keys, and what is refused in one line."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from llava.errors import InputError
from llava.eval.questions import question_and_reference
from llava.samples.loading import load_file
from llava.samples.record import read_record

TURNS = [{"from": "human", "value": "What?"}, {"from": "gpt", "value": "That."}]


def record(**entries: Any) -> dict[str, Any]:
    return {"id": "r", "conversations": TURNS, **entries}


@pytest.mark.parametrize("nothing", [None, "", []])
@pytest.mark.parametrize("key", ["image", "video", "images"])
def test_nothing_is_no_picture(key: str, nothing: Any) -> None:
    found = read_record(record(**{key: nothing}), 0)
    assert (found.images, found.video, found.has_media) == ((), None, False)
    question, reference = question_and_reference(record(**{key: nothing}), 0, "")
    assert question.images == [] and reference == "That."


@pytest.mark.parametrize(
    ("entries", "images", "video"),
    [
        ({"image": "a.png"}, ("a.png",), None),
        ({"image": ["a.png"], "video": "v"}, ("a.png",), None),
        ({"images": ["a.png", "b.png"]}, ("a.png", "b.png"), None),
        ({"videos": ["v"]}, (), "v"),
        ({"image": "a.png", "img": 3, "width": 9, "metadata": {}, "data_source": "x"}, ("a.png",), None),
        ({"image": "a, b.png"}, ("a, b.png",), None),
        ({"image_id": "1", "image_size": [2, 2], "image_set": "x", "source": "x", "img": None, "Image": ""}, (), None),
        ({"video": "v", "image_url": "u"}, (), "v"),
    ],
)
def test_names_and_other_keys(entries: dict[str, Any], images: tuple[str, ...], video: str | None) -> None:
    found = read_record(record(**entries), 0)
    assert (found.images, found.video) == (images, video)


@pytest.mark.parametrize("name", ["messages", "conversation"])
def test_turns_under_another_name(name: str) -> None:
    turns = [{"role": "user", "content": "What?"}, {"role": "assistant", "content": "That."}]
    assert read_record({name: turns}, 0).turns == tuple(TURNS)


@pytest.mark.parametrize(
    ("entries", "message"),
    [
        ({"img": "a.png"}, "the key 'img' is not known: did you mean 'image'"),
        ({"video_path": "v"}, "'video_path' is not known: did you mean 'video'"),
        ({"Image": "a.png"}, "'Image' is not known: did you mean 'image'"),
        ({"image_1": "a.png", "image_2": "b.png"}, "'image_1' is not known: did you mean 'image'"),
        ({"iamge": ["a.png"]}, "'iamge' is not known: did you mean 'image'"),
        ({"image url": "u"}, "'image url' is not known: did you mean 'image'"),
        ({"Videos": "v"}, "'Videos' is not known: did you mean 'video'"),
        ({"conversations": None, "Conversations": TURNS}, "no `conversations` .did you mean it by 'Conversations'"),
        ({"image": "https://a.b/c.png"}, "an address in place of a path"),
        ({"id": "x" * 5000, "image": 3}, "a path or a list of paths"),
        ({"id": ["\ud800"]}, "`id` has half a character"),
        ({"id": "a\nb", "image": 3}, r"record 'a.nb'"),
        ({"conversations": [{"from": "\ud800", "value": "?"}]}, "the role of turn 0 has half a character"),
        ({"image": "a.png,b.png"}, "2 paths in one text"),
        ({"image": "data:image/png;base64," + "A" * 5000}, "data in place of a path"),
        ({"image": "A" * 5000}, "data in place of a path"),
        ({"image": {"path": "a"}}, "a path or a list of paths"),
        ({"image": "a\ud800.png"}, "half a character"),
        ({"video": "\udfff"}, "half a character"),
        ({"id": "\ud800"}, "half a character"),
        ({"conversations": [{"from": "Human", "value": "?"}]}, "'Human': did you mean 'human'"),
        ({"conversations": [{"from": "human", "value": "\ud83d"}]}, "turn 0 has half a character"),
    ],
)
def test_refused_in_one_short_line(entries: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message) as error:
        read_record(record(**entries), 7)
    assert "(number 7)" in str(error.value) and len(str(error.value)) < 400
    assert str(error.value).isprintable()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[" * 100_000, "too deep|line 1"),
        ('[{},\n{"id": ' + "9" * 5000 + "}]", r"record 1, from line 2 on: .*digits"),
        ('[{},\n{"id": 1, "id": 2}]', r"record 1, from line 2 on: the key 'id' stands more than once in an object"),
        ('[{}, {"a": ' + "[" * 60 + "]" * 60 + "}]", "record 1 has lists or objects too deep in each other"),
    ],
)
@pytest.mark.parametrize("suffix", [".json", ".jsonl"])
def test_json_that_nobody_can_read(text: str, message: str, suffix: str, tmp_path: Path) -> None:
    file = tmp_path / f"data{suffix}"
    file.write_text(text)
    with pytest.raises(InputError, match=message):
        load_file(file)


def test_a_surrogate_in_a_file_is_found_where_it_is(tmp_path: Path) -> None:
    turns = [{"from": "human", "value": "?"}, {"from": "gpt", "value": "\udc00"}]
    (tmp_path / "data.json").write_text(json.dumps([record(), {"id": "bad", "conversations": turns}]))
    records = load_file(tmp_path / "data.json")
    read_record(records[0], 0)
    with pytest.raises(InputError, match=r"record 'bad' \(number 1\): turn 1 has half a character"):
        read_record(records[1], 1)
