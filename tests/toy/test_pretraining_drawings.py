"""The pre-training drawings: reproducible, related to the demo tasks, but without their questions."""

from __future__ import annotations

import json
from collections import Counter, defaultdict

import pytest

from llava.toy import demo, pretraining
from llava.toy.drawing import MOST_ROUNDS, fingerprint

SEED = 7


@pytest.fixture(scope="module")
def samples():
    return [pretraining.draw(SEED, number) for number in range(420)]


def test_a_sample_depends_on_its_number_alone(samples):
    again = pretraining.draw(SEED, 33)
    assert fingerprint(again.image) == fingerprint(samples[33].image)
    assert again.rounds == samples[33].rounds
    assert fingerprint(pretraining.draw(SEED + 1, 33).image) != fingerprint(again.image)


def test_only_the_first_question_carries_the_tag(samples):
    for sample in samples:
        assert 1 <= len(sample.rounds) <= MOST_ROUNDS
        assert sample.rounds[0].prompt.startswith("<image>\n")
        assert not any("<image>" in item.prompt for item in sample.rounds[1:])


def test_no_question_of_the_demo_sets_is_asked(samples):
    asked = {item.prompt.removeprefix("<image>\n") for sample in samples for item in sample.rounds}
    for name in demo.SETS:
        for drawn in demo.split_samples(name, seed=42, sizes={"train": 40, "val": 10, "test": 20}).values():
            assert asked.isdisjoint(sample.rounds[0].prompt.removeprefix("<image>\n") for sample in drawn)


def test_the_question_that_reads_the_whole_picture_is_always_asked(samples):
    for sample in samples:
        lists = [item for item in sample.rounds if item.kind.endswith("_list")]
        assert len(lists) == 1
        assert lists[0].answer


def test_every_yes_no_question_has_both_answers(samples):
    answers = defaultdict(Counter)
    for sample in samples:
        for item in sample.rounds:
            answers[item.kind][item.answer] += 1
    for kind in ("bright_spot", "dark_spot", "ring", "has_colour"):
        assert set(answers[kind]) == {"Yes", "No"}
        assert 0.2 < answers[kind]["Yes"] / answers[kind].total() < 0.8


def test_rounds_of_one_picture_agree(samples):
    """Single questions have the answer that the list of the whole picture gives."""
    checked = Counter()
    for sample in samples:
        given = {item.kind: item for item in sample.rounds}
        if "spot_list" in given and "spot_side" in given:
            side = given["spot_side"].answer
            listed = given["spot_list"].answer
            assert ("bright" not in listed) if side == "nowhere" else (f"bright {side}" in listed)
            checked["spots"] += 1
        if "shape_list" in given and "cell_count" in given:
            listed = given["shape_list"].answer
            assert int(given["cell_count"].answer) == listed.count(";") + 1 - listed.count("empty")
            checked["shapes"] += 1
        if "height_list" in given and "height" in given:
            assert given["height"].answer in given["height_list"].answer
            checked["heights"] += 1
    assert min(checked["spots"], checked["shapes"], checked["heights"]) > 10


def test_options_hold_the_answer(samples):
    checked = 0
    for sample in samples:
        for item in sample.rounds:
            if "Options: " in item.prompt:
                listed = item.prompt.split("Options: ")[1].removesuffix("\nAnswer:")
                assert item.answer in listed.replace(" or ", "; ").split("; ")
                checked += 1
    assert checked > 50


def test_command_continues_where_another_call_ended(tmp_path):
    pretraining.main(["--output", str(tmp_path / "all"), "--samples", "6"])
    pretraining.main(["--output", str(tmp_path / "rest"), "--samples", "2", "--first", "4"])
    everything = json.loads((tmp_path / "all" / "train.json").read_text())
    rest = json.loads((tmp_path / "rest" / "train.json").read_text())
    assert everything[4:] == rest
    picture = rest[0]["image"]
    assert (tmp_path / "all" / picture).read_bytes() == (tmp_path / "rest" / picture).read_bytes()


def test_command_can_keep_the_first_question_alone(tmp_path):
    pretraining.main(["--output", str(tmp_path), "--samples", "7", "--rounds", "1"])
    records = json.loads((tmp_path / "train.json").read_text())
    assert [len(record["conversations"]) for record in records] == [2] * 7
    assert all(len(record["kind"]) == 1 for record in records)


def test_wrong_numbers_are_refused(tmp_path, refused):
    assert "--samples" in refused(pretraining.main, ["--output", str(tmp_path), "--samples", "0"])
