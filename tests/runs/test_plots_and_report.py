"""The loss curve, the report and the closing table of a run."""

from __future__ import annotations

import json
import math

import pytest
from PIL import Image

from llava.errors import InputError
from llava.runs import plots
from llava.runs.plots import loss_points, plot_curves, plot_loss
from llava.runs.run_report import REQUIRED_FIELDS, closing_table, update_report, versions, write_report

HISTORY = [{"step": k, "loss": 2.0 / k, "learning_rate": 1e-6} for k in range(1, 60)] + [
    {"step": 59, "train_runtime": 3}
]


@pytest.fixture
def fields():
    return dict.fromkeys(REQUIRED_FIELDS) | {
        "preset": "demo",
        "accuracy_before": 0.626,
        "accuracy_after": 0.918,
        "final_loss": 0.12345,
        "steps": 5000,
        "seconds_per_step": 0.02,
        "peak_memory_bytes": 3 * 2**29,
        "trainable_parameters": 856_576,
    }


def test_only_entries_with_a_loss_are_drawn():
    steps, losses = loss_points(HISTORY)
    assert steps == list(range(1, 60))
    assert losses[3] == 0.5


@pytest.mark.parametrize("count", [1, 3, 59])
def test_plot_is_a_readable_picture(tmp_path, count):
    plot_loss(HISTORY[:count], tmp_path / "loss.png", title="demo")
    with Image.open(tmp_path / "loss.png") as image:
        assert image.size[0] >= 800
        assert len(set(image.convert("L").resize((60, 40)).getdata())) > 5


def test_plot_draws_what_was_logged(tmp_path):
    plot_loss(HISTORY, tmp_path / "a.png")
    plot_loss([{**entry, "loss": 1.0} for entry in HISTORY if "loss" in entry], tmp_path / "b.png")
    assert (tmp_path / "a.png").read_bytes() != (tmp_path / "b.png").read_bytes()


@pytest.fixture
def drawn(figures_of):
    return figures_of(plots)


@pytest.mark.parametrize(("top", "scale", "end"), [(0.25, "linear", 0.3), (7.0, "linear", 0.2), (1e5, "linear", 0.2)])
def test_a_curve_that_diverged_leaves_the_others_readable(tmp_path, drawn, top, scale, end):
    steps = list(range(40))
    curves = {"good": [(steps, [0.1] * 40)], "bad": [(steps, [0.1] * 20 + [top] * 20)]}
    plot_curves(curves, tmp_path / "loss.png", title="demo")
    ((figure, axes),) = drawn
    assert axes.get_yscale() == scale and axes.get_ylim()[1] < end
    names = [text.get_text() for text in figure.legends[0].get_texts()]
    assert names[0] == "good" and ("diverged" in names[1]) == (top > end)
    assert f"{top:,.4g}" in names[1] or top < end


def test_a_curve_ends_where_its_window_does_and_has_the_range_of_its_runs(tmp_path, drawn):
    steps = [4 * k for k in range(1, 61)]
    plot_curves({"two": [(steps, [1.0] * 60), (steps[:50], [3.0] * 50)]}, tmp_path / "loss.png", "demo", "samples seen")
    ((_, axes),) = drawn
    (line,), (band,) = axes.get_lines(), axes.collections
    assert line.get_xdata()[0] == 8 and line.get_xdata()[-1] == 196  # of 50 points, three to a mean
    assert set(line.get_ydata()) == {2.0}
    assert (band.get_paths()[0].vertices[:, 1].min(), band.get_paths()[0].vertices[:, 1].max()) == (1.0, 3.0)
    assert axes.get_xlabel() == "samples seen"


def test_the_loss_of_a_run_says_what_a_step_is(tmp_path, drawn):
    plot_loss(HISTORY, tmp_path / "loss.png", samples=4)
    ((_, axes),) = drawn
    assert axes.get_xlabel() == "optimizer step (of 4 samples, 236 in all)"
    assert [text.get_text() for text in axes.get_legend().get_texts()] == ["logged", "mean of 3 logged values"]


def test_bars_have_a_block_a_task_and_one_look_a_method(tmp_path, drawn):
    given = [("scan", "AdamW", 90.0), ("scan", "MeZO", 80.0), ("chart", "MeZO", 20.0)]
    bars = [
        {"block": task, "series": method, "label": f"{method}, LM", "value": value, "spread": 1.0, "before": 5.0}
        for task, method, value in given
    ]
    plots.plot_bars(bars, tmp_path / "bars.png", "demo")
    ((figure, axes),) = drawn
    looks = [(patch.get_facecolor(), patch.get_hatch()) for patch in axes.patches]
    assert [patch.get_width() for patch in axes.patches] == [90.0, 80.0, 20.0]
    assert looks[1] == looks[2] and looks[0][0] != looks[1][0] and looks[0][1] != looks[1][1]
    names = [text.get_text() for text in figure.legends[0].get_texts()]
    assert names == ["AdamW", "MeZO", "before training", "± standard deviation over seeds"]
    assert {"scan", "chart"} <= {text.get_text() for text in axes.texts}


VALIDATION = {
    "metric": "exact",
    "best_step": 40,
    "best": 0.75,
    "weights_of_step": 40,
    "history": [{"step": 20, "value": 0.5}, {"step": 40, "value": 0.75}, {"step": 59, "value": None}],
}


@pytest.mark.parametrize(
    ("metric", "label", "drawn"),
    [("loss", None, [0.5, 0.75]), ("exact", "% right", [50, 75]), ("module:function", "module:function", [0.5, 0.75])],
)
def test_validation_is_drawn_beside_the_loss(tmp_path, monkeypatch, metric, label, drawn):
    figure, axes = plots.empty_figure()
    monkeypatch.setattr(plots, "empty_figure", lambda: (figure, axes))
    plot_loss(HISTORY, tmp_path / "loss.png", validation=VALIDATION | {"metric": metric})
    assert len(figure.axes) == (1 if label is None else 2)
    assert label is None or label in figure.axes[1].get_ylabel()
    curve, ring = figure.axes[-1].get_lines()[-2:]
    assert list(curve.get_xdata()) == [20, 40] and list(curve.get_ydata()) == drawn
    assert list(ring.get_xdata()) == [40] and list(ring.get_ydata()) == drawn[1:]
    texts = [text.get_text() for text in figure.legends[0].get_texts()]
    assert texts == ["logged", "mean of 3 logged values", f"validation ({metric})", "best, step 40"]


def test_a_validation_without_a_finite_value_has_no_curve(tmp_path):
    nothing = VALIDATION | {"best_step": None, "best": None, "history": [{"step": 20, "value": None}]}
    plot_loss(HISTORY, tmp_path / "loss.png", validation=nothing)
    assert (tmp_path / "loss.png").stat().st_size > 1000


def estimate(value, error=1.0):
    return {"value": value, "error": error}


def test_progress_is_drawn_below_the_loss(tmp_path, drawn):
    gradients = [{"step": step, "rms": 10.0 + step} for step in (12, 37, 52)]
    probes = [
        {"steps": [25 * k, 25 * k + 20], "signal": estimate(5.0 - k), "trace": estimate(-90.0 * k, 40.0)}
        for k in (0, 1)
    ]
    plot_loss(HISTORY, tmp_path / "loss.png", gradients=gradients, probes=probes)
    ((figure, (loss, slopes, signal)),) = drawn
    curvature = figure.axes[-1]
    assert list(slopes.get_lines()[0].get_ydata()) == [22.0, 47.0, 62.0]
    for axes, values in ((signal, [5.0, 4.0]), (curvature, [0.0, -90.0])):
        assert list(axes.containers[0].lines[0].get_xdata()) == [10.0, 35.0]
        assert list(axes.containers[0].lines[0].get_ydata()) == values
    assert (loss.get_xlabel(), signal.get_xlabel()) == ("", "optimizer step")
    assert len({axes.get_xlim() for axes in figure.axes}) == 1


@pytest.mark.parametrize(("last", "scale"), [(1.02, "linear"), (30.0, "log"), (0.0, "linear")])
def test_projected_gradients_of_one_size_have_an_axis_from_0(tmp_path, drawn, last, scale):
    gradients = [{"step": step, "rms": rms} for step, rms in ((12, 1.0), (37, last))]
    plot_loss(HISTORY, tmp_path / "loss.png", gradients=gradients)
    ((_, (_, slopes)),) = drawn
    assert slopes.get_yscale() == scale and (slopes.get_ylim()[0] == 0) == (scale == "linear")


def test_a_single_window_is_no_curve(tmp_path, drawn):
    probe = {"steps": [0, 20], "signal": {"value": 5.0, "error": 1.0}, "trace": {"value": -90.0, "error": 40.0}}
    plot_loss(HISTORY, tmp_path / "loss.png", gradients=[{"step": 12, "rms": 1.0}], probes=[probe])
    ((_, axes),) = drawn
    assert axes.get_xlabel() == "optimizer step"


def test_empty_history_is_named(tmp_path):
    with pytest.raises(InputError, match=r"loss\.png.*--logging_steps"):
        plot_loss([{"step": 1}], tmp_path / "loss.png")


def test_report_holds_what_was_given(tmp_path, fields):
    path = write_report(tmp_path, fields | {"extra": (1, math.nan)})
    report = json.loads(path.read_text())
    assert path.name == "report.json"
    assert report["accuracy_after"] == 0.918
    assert report["extra"] == [1, None]
    assert set(REQUIRED_FIELDS) <= set(report)


def test_report_refuses_to_leave_a_field_out(tmp_path, fields):
    del fields["final_loss"]
    with pytest.raises(ValueError, match="final_loss"):
        write_report(tmp_path, fields)
    assert not list(tmp_path.iterdir())


def test_report_can_be_updated(tmp_path, fields):
    write_report(tmp_path, fields)
    assert update_report(tmp_path, {"accuracy_after": 0.95})["accuracy_after"] == 0.95
    stored = json.loads((tmp_path / "report.json").read_text())
    assert (stored["accuracy_before"], stored["accuracy_after"]) == (0.626, 0.95)


def test_missing_report_and_folder_are_named(tmp_path, fields):
    with pytest.raises(InputError, match=r"report\.json"):
        update_report(tmp_path, {})
    with pytest.raises(InputError, match="--output_dir"):
        write_report(tmp_path / "missing", fields)


def test_table_shows_the_figures(tmp_path, fields):
    table = closing_table(fields, tmp_path)
    for text in ("62.6 %", "91.8 %", "0.1235", "5,000", "0.020 s", "1.50 GiB", "856,576", str(tmp_path)):
        assert text in table
    assert len({line.index("  ") for line in table.splitlines() if line.startswith("trainable")}) == 1


def test_table_has_the_best_validation(tmp_path, fields):
    assert "best validation (exact)  0.7500 at step 40\n" in closing_table(
        fields | {"validation": VALIDATION}, tmp_path
    )
    last = VALIDATION | {"weights_of_step": 1200}
    assert "0.7500 at step 40; the model is of step 1,200\n" in closing_table(fields | {"validation": last}, tmp_path)
    assert "validation" not in closing_table(fields | {"validation": VALIDATION | {"best": None}}, tmp_path)


def test_table_leaves_out_what_is_not_known(tmp_path, fields):
    table = closing_table(fields | {"accuracy_before": None, "peak_memory_bytes": 5 * 2**20}, tmp_path)
    assert "accuracy before" not in table
    assert "5 MiB" in table
    assert "skipped" not in table
    assert "skipped samples" in closing_table(fields | {"skipped_samples": [{"id": 1}]}, tmp_path)


def test_versions_name_the_packages_that_matter():
    found = versions()
    assert {"python", "torch", "transformers"} <= set(found)
    assert all(found.values())
