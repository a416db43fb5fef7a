"""Averages, limits, ticks and labels of pictures, as numbers."""

from __future__ import annotations

import math

import pytest

from llava.runs.style import (
    LABEL_GAP,
    cut_off,
    empty_figure,
    label_ends,
    line_style,
    moving_average,
    spread,
    upper_limit,
    whole_ticks,
)


@pytest.mark.parametrize(("count", "reach"), [(3, 1), (40, 1), (100, 2), (5000, 125)])
def test_an_average_is_of_a_whole_window_everywhere(count, reach):
    places, values = [10 * k for k in range(count)], [float(k * k) for k in range(count)]
    inner, averages = moving_average(places, values)
    assert inner == places[reach : count - reach]
    first = values[: 2 * reach + 1]
    assert averages[0] == pytest.approx(sum(first) / len(first))
    assert moving_average(places, [3.0] * count)[1] == [3.0] * (count - 2 * reach)


def test_an_average_calms_noise_at_its_ends_too():
    noise = [(-1.0) ** k for k in range(100)]
    assert max(map(abs, moving_average(range(100), noise)[1])) <= 0.2


@pytest.mark.parametrize("values", [[], [4.0], [4.0, 2.0]])
def test_too_few_values_stay_as_they_are(values):
    assert moving_average(range(len(values)), values) == (list(range(len(values))), values)


@pytest.mark.parametrize(
    ("curves", "limit"),
    [
        ([[0.4, 0.1], [0.5, 0.2]], None),
        ([[0.4, 0.1], [0.5, 1.4]], None),  # not three times the highest start
        ([[0.4, 0.1], [0.5, 1.6]], 0.42),
        ([[0.4, 0.1], [0.4, 0.3], [0.4, 1e5]], 0.42),
        ([[0.4, 0.1], [0.4, math.nan, math.inf]], None),
        ([[0.1, 5.0]], None),  # one curve is the picture's subject
        ([[]], None),
    ],
)
def test_what_diverged_does_not_set_the_limit(curves, limit):
    assert upper_limit(curves) == (None if limit is None else pytest.approx(limit))


def test_the_legend_names_what_is_cut_off():
    assert cut_off("MeZO", [0.4, 0.1], 0.5) == "MeZO"
    assert cut_off("MeZO", [0.4, 1e9], None) == "MeZO"
    assert cut_off("MeZO", [0.4, 1234.5, math.inf], 0.5) == "MeZO; diverged, up to 1,234 above the picture"


@pytest.mark.parametrize("steps", [4, 10, 25, 750, 5000])
def test_steps_have_whole_ticks(steps):
    _, axes = empty_figure()
    axes.plot([0, steps], [0, 1])
    whole_ticks(axes.xaxis)
    ticks = [tick for tick in axes.get_xticks() if 0 <= tick <= steps]
    assert 3 <= len(ticks) <= 7 and all(tick == int(tick) for tick in ticks)
    assert axes.xaxis.get_major_formatter()(5000) == "5,000"


def test_one_step_is_labelled_once():
    figure, axes = empty_figure()
    axes.plot([10], [1], marker="o")
    whole_ticks(axes.xaxis)
    figure.canvas.draw()
    assert [text for tick in axes.get_xticklabels() if (text := tick.get_text())] == ["10"]


def test_labels_move_apart_no_further_than_they_must():
    assert spread([0.1, 0.9, 0.5], 0.05) == [0.1, 0.9, 0.5]
    assert spread([0.5, 0.5], 0.1) == pytest.approx([0.45, 0.55])
    moved = spread([0.5, 0.52, 0.1, 0.51], 0.06)
    assert moved == pytest.approx([0.45, 0.57, 0.1, 0.51])


def test_coinciding_lines_have_a_label_each_of_their_colour():
    _, axes = empty_figure()
    for number, name in enumerate(["native", "fp32", "in place"]):
        axes.plot([0, 1], [1, 1 if number < 2 else 2], label=name, **line_style(number))
    label_ends(axes)
    heights = {text.get_text(): text.get_position()[1] for text in axes.texts}
    assert set(heights) == {"native", "fp32", "in place"}
    assert abs(heights["native"] - heights["fp32"]) == pytest.approx(LABEL_GAP)
    assert heights["in place"] > max(heights["native"], heights["fp32"])
    assert [text.get_color() for text in axes.texts] == [line_style(number)["color"] for number in range(3)]


def test_neighbouring_lines_differ_without_colour():
    styles = [line_style(number) for number in range(8)]
    for one, other in zip(styles, styles[1:], strict=False):
        assert all(one[name] != other[name] for name in one)
    assert len({(style["color"], style["linestyle"], style["marker"]) for style in styles}) == 8
