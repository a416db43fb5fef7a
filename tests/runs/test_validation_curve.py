"""The validation curve of a run: its best point, how long ago that was, and its file."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest

from llava.errors import InputError
from llava.runs.validation import CURVE_FILE, Curve


def curve(metric: str, *values: float) -> Curve:
    made = Curve(metric, "val.json", ["abc"])
    for number, value in enumerate(values, start=1):
        made.add(10 * number, value)
    return made


@pytest.mark.parametrize(("metric", "best"), [("loss", 20), ("exact", 30), ("module:function", 30)])
def test_the_best_is_the_first_of_equal_ones(metric: str, best: int) -> None:
    made = curve(metric, 2.0, 1.0, 3.0, 3.0, 1.0, math.nan, math.inf)
    assert made.best_step() == best and made.since_best() == 7 - best // 10
    assert made.best_step(until=10) == 10 and made.since_best(until=10) == 0
    assert made.report()["best"] == {20: 1.0, 30: 3.0}[best]
    assert [point["value"] for point in made.report()["history"]][-2:] == [None, None]


def test_without_a_finite_value_there_is_no_best() -> None:
    made = curve("loss", math.nan, math.inf)
    assert made.best_step() is None and made.since_best() == 2
    assert curve("loss").since_best() == 0 and curve("loss").report()["best"] is None


def test_points_of_steps_that_are_taken_again_are_dropped(tmp_path: Path) -> None:
    before = curve("loss", 3.0, math.nan, 1.0)
    before.save(tmp_path)
    after = curve("loss")
    after.take_up(tmp_path, 20, changes=False)
    assert after.points == {10: 3.0, 20: None}
    after.take_up(tmp_path / "new", 20, changes=False)
    assert after.points == {10: 3.0, 20: None}


def test_another_curve_begins_anew_where_that_is_wanted(tmp_path: Path) -> None:
    curve("loss", 3.0).save(tmp_path)
    other = curve("exact")
    with pytest.raises(InputError, match="--eval_metric loss"):
        other.take_up(tmp_path, 10, changes=False)
    other.take_up(tmp_path, 10, changes=True)
    assert not other.points
    other.take_up(tmp_path, 5, changes=False)  # nothing of it is left
    records = Curve("loss", "val.json", ["def"])
    with pytest.raises(InputError, match="other records"):
        records.take_up(tmp_path, 10, changes=False)


@pytest.mark.parametrize("text", ["{", "{}", '{"metric": "loss", "data": "x", "data_sha256": [], "history": [1]}'])
def test_a_damaged_file_is_named(text: str, tmp_path: Path) -> None:
    (tmp_path / CURVE_FILE).write_text(text)
    with pytest.raises(InputError, match=CURVE_FILE):
        curve("loss").take_up(tmp_path, 10, changes=False)


def test_the_file_is_plain(tmp_path: Path) -> None:
    curve("loss", 3.0).save(tmp_path)
    content = json.loads((tmp_path / CURVE_FILE).read_text())
    assert content == {
        "metric": "loss",
        "data": "val.json",
        "data_sha256": ["abc"],
        "history": [{"step": 10, "value": 3.0}],
    }
