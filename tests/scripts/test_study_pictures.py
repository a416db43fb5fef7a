"""Pictures of the experiments: what they draw, and that those of docs/ are made of its tables."""

from __future__ import annotations

import re
import sys
from pathlib import Path

import pytest

from llava.errors import InputError
from llava.runs import plots

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT / "scripts" / "study"))

import pictures  # noqa: E402
import table_pictures  # noqa: E402


@pytest.fixture
def drawn(figures_of):
    return figures_of(pictures)


def test_the_grid_says_what_was_not_run_and_keeps_near_accuracies_near(tmp_path, drawn):
    cells = {("1e-5", "1e-3"): 91.5, ("1e-4", "1e-3"): 94.0, ("1e-3", "1e-3"): None}
    pictures.plot_grid(cells, ["1e-5", "1e-4", "1e-3"], ["1e-3", "1e-2"], tmp_path / "a.png", "t", 53.5, 200)
    ((figure, axes),) = drawn
    assert [text.get_text() for text in axes.texts] == ["91.5", "94.0", "diverged", *["not run"] * 3]
    assert (axes.images[0].norm.vmin, axes.images[0].norm.vmax) == (53.5, 94.0)
    assert "one is 0.5 points, the standard error of the best 1.7" in figure.get_supxlabel()


@pytest.mark.parametrize(
    ("values", "limit"), [([90.0, 91.0, 92.0], None), ([25.8, 90.0, 91.0, 91.5, 92.0], 90.0), ([50.0], None)]
)
def test_a_row_far_below_the_others_does_not_set_the_limit(values, limit):
    assert pictures.left_limit(values) == limit


def test_rows_are_points_but_for_an_arrow_with_its_number(tmp_path, drawn):
    rows = [{"label": str(value), "value": value, "series": "a", "note": "diverged"} for value in (25.8, 90, 91, 92)]
    pictures.plot_rows(rows, tmp_path / "a.png", "t", 500)
    ((_, axes),) = drawn
    assert [text.get_text() for text in axes.texts] == ["", "25.8 diverged", "90.0", "91.0", "92.0"]
    assert axes.get_xlim()[0] > 80


def test_curves_are_multiples_of_the_reference(tmp_path, drawn):
    curves = {"in place": [(0, 4.0), (5, 3.0), (10, 3.0)], "fp32": [(0, 4.0), (5, 2.0), (10, 1.0)]}
    pictures.plot_against(curves, "fp32", tmp_path / "a.png", "t", "loss")
    ((_, (left, right)),) = drawn
    ratios = {line.get_label(): list(line.get_ydata()) for line in right.get_lines()[:2]}
    assert ratios == {"in place": [1.5, 3.0], "fp32": [1.0, 1.0]}
    assert [list(line.get_ydata()) for line in left.get_lines()] == [[4.0, 3.0, 3.0], [4.0, 2.0, 1.0]]
    assert {text.get_text() for text in right.texts} == {"in place", "fp32"}


def test_windows_of_all_runs_are_inside_the_shared_axis(tmp_path, drawn):
    rows = [[{"step": 5, "loss": top, "rms": 1.0, "share": 0.1, "error": 0.05}] for top in (1.0, 4.0)]
    pictures.plot_windows({"scan: MeZO, lr 1e-4": rows[0], "chart": rows[1]}, tmp_path / "a.png")
    ((_, panels),) = drawn
    assert panels.shape == (3, 2) and panels[0, 0].get_title() == "scan: MeZO\nlr 1e-4"
    low, high = panels[0, 0].get_ylim()
    assert low <= 0 and high >= 4.0


@pytest.mark.parametrize(
    ("name", "numbers"),
    [
        ("study_accuracy", ["94.7", "15.2"]),
        ("study_batch_size", ["25.8 diverged", "92.0"]),
        ("study_rate_and_eps", ["91.5", "not run"]),
        ("study_memory", ["2.1", "16.8", "1.5"]),
    ],
)
def test_pictures_of_tables_have_their_numbers(tmp_path, drawn, monkeypatch, name, numbers):
    monkeypatch.setattr(plots, "empty_figure", pictures.empty_figure)
    table_pictures.PICTURES[name](tmp_path / "a.png")
    ((_, axes),) = drawn
    texts = [text.get_text() for text in axes.texts]
    assert set(numbers) <= set(texts)


@pytest.mark.parametrize("name", ["study_signal", "storage_words", "storage_tiny"])
def test_pictures_of_curves_are_made_of_their_tables(tmp_path, drawn, name):
    table_pictures.PICTURES[name](tmp_path / "a.png")
    ((_, panels),) = drawn
    first = panels.flat[0].get_lines()
    assert len(panels.flat) == (4 if name == "study_signal" else 2)
    points = {"study_signal": 8.9, "storage_words": 7.37, "storage_tiny": 0.941}
    shown = [value for axes in panels.flat for line in axes.get_lines() for value in line.get_ydata()]
    assert first and points[name] in [pytest.approx(value) for value in shown]


def test_shares_of_slopes_and_parts_are_those_of_their_tables(tmp_path, drawn):
    for name in ("study_rounding", "study_by_layer"):
        table_pictures.PICTURES[name](tmp_path / "a.png")
    (_, axes), (_, panels) = drawn
    curves = {line.get_label(): list(line.get_ydata()) for line in axes.get_lines()}
    assert curves["after 111 steps, one side"] == pytest.approx([100, 79, 16, 22, 82])
    assert [text.get_text() for text in panels[0, 0].get_yticklabels()][:3] == ["all weights", "embeddings", "norms"]
    traces = panels[0, 1].containers[0]
    assert traces.lines[0].get_xdata()[0] == 1450 and list(traces.lines[0].get_xdata())[2] == 395


def test_adapters_are_those_of_both_tables(tmp_path, drawn):
    table_pictures.PICTURES["study_adapters"](tmp_path / "a.png")
    ((_, panels),) = drawn
    names = [text.get_text() for text in panels[0, 0].get_yticklabels()]
    assert names[:2] == ["all weights", "LoRA"] and "all weights, AdaLomo" in names and len(names) == len(set(names))
    by_gradients, by_forwards = panels[0, 2].containers
    places = dict(zip(by_forwards.lines[0].get_ydata(), by_forwards.lines[0].get_xdata(), strict=True))
    assert by_gradients.lines[0].get_xdata()[0] == 42.0
    assert places[names.index("all weights")] == 15.2 and places[names.index("MoRA")] == 16.9
    assert panels[0, 2].get_lines()[0].get_xdata()[0] == 3.2


def test_what_has_not_been_run_has_no_point(tmp_path, drawn):
    """A cosine over 40,000 forwards, for one, has the figure task alone."""
    table_pictures.PICTURES["study_algorithms"](tmp_path / "a.png")
    ((_, panels),) = drawn
    names = [text.get_text() for text in panels[0, 0].get_yticklabels()]
    for task, has in enumerate((False, True, False)):
        half, all_ = (
            dict(zip(series.lines[0].get_ydata(), series.lines[0].get_xdata(), strict=True))
            for series in panels[0, task].containers
        )
        assert names[0] == "plain" and 0 in half and (names.index("cosine") in all_) == has
    assert half[names.index("fzoo16")] == 18.0 and half[names.index("svrg, an anchor every fifth step")] == 13.3


def test_a_missing_table_is_named():
    with pytest.raises(InputError, match=r"docs/log\.md: no table with the columns nothing below 'Log'"):
        table_pictures.table_after("log.md", "Log", ["nothing"])


def test_every_picture_of_the_documents_is_there_has_a_text_and_is_shown():
    shown = {}
    for document in (ROOT / "docs").glob("*.md"):
        for text, file in re.findall(r"!\[([^\]]*)\]\(([^)]+\.png)\)", document.read_text(encoding="utf-8")):
            assert len(text.split()) >= 5, f"{document.name}: {file} has no text that says what is seen"
            assert (document.parent / file).is_file(), f"{document.name}: {file}"
            shown[file] = document.name
    assert {f"pictures/{file.name}" for file in (ROOT / "docs" / "pictures").iterdir()} == set(shown)
