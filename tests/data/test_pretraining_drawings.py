"""The pre-training drawings: reproducible, related to the demo tasks, but without their questions."""

from __future__ import annotations

import json
from collections import Counter, defaultdict

import pytest

from llava.data import demo, pretraining
from llava.data.drawing import MOST_ROUNDS, fingerprint

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
        for drawn in demo.split_samples(name, seed=42, scale=0.05).values():
            assert asked.isdisjoint(sample.rounds[0].prompt.removeprefix("<image>\n") for sample in drawn)


def test_every_yes_no_question_has_both_answers_about_equally(samples):
    answers = defaultdict(Counter)
    for sample in samples:
        for item in sample.rounds:
            answers[item.kind][item.answer] += 1
    for kind in ("bright_spot", "dark_spot", "ring", "is_colour", "has_colour", "more_than"):
        assert set(answers[kind]) == {"Yes", "No"}
        assert 0.2 < answers[kind]["Yes"] / answers[kind].total() < 0.8


def test_rounds_of_one_picture_agree(samples):
    """The place of the bright spot is `nowhere` exactly when there is none."""
    checked = 0
    for sample in samples:
        given = {item.kind: item.answer for item in sample.rounds}
        if {"bright_spot", "spot_side"} <= given.keys():
            assert (given["bright_spot"] == "No") == (given["spot_side"] == "nowhere")
            checked += 1
    assert checked > 20


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


def test_wrong_numbers_are_refused(tmp_path, capsys):
    with pytest.raises(SystemExit) as stop:
        pretraining.main(["--output", str(tmp_path), "--samples", "0"])
    assert stop.value.code == 2
    assert "--samples" in capsys.readouterr().err
