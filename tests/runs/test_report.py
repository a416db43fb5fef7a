"""Pages about several runs: groups, means, shares, rises, columns, pictures, refusals."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from llava.errors import InputError
from llava.runs import report
from llava.runs.run_report import REQUIRED_FIELDS
from llava.runs.runs import grouped, read_run, rise_after_minimum, share_of_adamw, varying

ADAMW = {"trainer_mode": "regular", "per_device_train_batch_size": 1, "max_steps": 3000, "learning_rate": 3e-4}
MEZO = {
    "trainer_mode": "zo",
    "per_device_train_batch_size": 4,
    "max_steps": 5000,
    "learning_rate": 1e-4,
    "zo_eps": 1e-3,
}
FALLING = [2.0 - 0.05 * k for k in range(20)]


def make_run(folder: Path, after: float, flags: dict[str, Any], losses: list[float] = FALLING, **more: Any) -> Path:
    """A finished run as train.py leaves it, as far as reports look."""
    folder.mkdir(parents=True)
    arguments = {
        "data_path": "data/scan/train.json",
        "model_name_or_path": "somewhere/tiny",
        "mm_tunable_parts": "mm_language_model",
        "seed": 0,
        "zo_seed": 0,
        **flags,
        **more,
    }
    found = dict.fromkeys(REQUIRED_FIELDS) | {
        "trainer_mode": arguments["trainer_mode"],
        "steps": arguments["max_steps"],
        "accuracy_before": 0.5,
        "accuracy_after": after,
        "seconds_per_step": 0.25,
        "peak_memory_bytes": 2**29,
    }
    history = [{"step": 10 * k + 10, "loss": loss} for k, loss in enumerate(losses)]
    files = {"report": found, "training_args": arguments, "trainer_state": {"log_history": history}}
    for name, content in files.items():
        (folder / f"{name}.json").write_text(json.dumps(content))
    return folder


@pytest.fixture
def folders(tmp_path):
    """Two seeds of AdamW (90 and 92 %), two of MeZO (86 and 90 %), one of MeZO with vision (80 %)."""
    vision = {"mm_tunable_parts": "mm_vision_tower,mm_mlp_adapter,mm_language_model"}
    return [
        make_run(tmp_path / "m0", 0.86, MEZO),
        make_run(tmp_path / "m1", 0.90, MEZO, seed=1, zo_seed=1),
        make_run(tmp_path / "v0", 0.80, MEZO | vision),
        make_run(tmp_path / "a0", 0.90, ADAMW),
        make_run(tmp_path / "a1", 0.92, ADAMW, seed=1),
    ]


def test_seeds_are_one_group_and_parts_are_two(folders):
    groups = grouped(map(read_run, folders))
    assert [(g.method, len(g.runs)) for g in groups] == [("AdamW", 2), ("MeZO", 2), ("MeZO", 1)]
    assert groups[1].mean("accuracy_after") == pytest.approx(0.88)
    assert groups[1].spread("accuracy_after") == pytest.approx(0.02 * 2**0.5)
    assert groups[2].spread("accuracy_after") is None
    assert groups[1].gain == pytest.approx(0.38)
    assert {group.task for group in groups} == {"scan"}


def test_share_is_of_adamw_with_the_same_parts_and_of_its_best_rate(folders, tmp_path):
    groups = grouped(map(read_run, folders))
    assert share_of_adamw(groups[1], groups) == pytest.approx(38 / 41)
    assert share_of_adamw(groups[2], groups) is None  # AdamW was not run with vision
    assert share_of_adamw(groups[0], groups) is None  # it is AdamW
    better = make_run(tmp_path / "better", 0.97, ADAMW | {"learning_rate": 1e-4})
    groups = grouped(map(read_run, [*folders, better]))
    mezo = next(group for group in groups if group.method == "MeZO")
    assert share_of_adamw(mezo, groups) == pytest.approx(38 / 47)


def test_settings_of_one_method_that_differ_are_columns(folders):
    groups = grouped(map(read_run, folders))
    assert varying(groups) == ["mm_tunable_parts"]  # rates and batches differ between methods alone


def test_an_adapter_stands_for_the_language_model(folders, tmp_path):
    """Whose own weights it leaves as they are, whether --mm_tunable_parts names it or not."""
    both = {"adapter": "lora", "mm_tunable_parts": "mm_mlp_adapter"}
    groups = grouped(map(read_run, [folders[0], make_run(tmp_path / "lora", 0.8, MEZO | both)]))
    rows = [report.summary(group, groups) for group in groups]
    assert [report.setting(row, "mm_tunable_parts") for row in rows] == ["LM", "adapter + projector"]
    rows[1]["settings"]["mm_tunable_parts"] = "mm_language_model,mm_vision_tower"
    assert report.setting(rows[1], "mm_tunable_parts") == "adapter + vision"


def test_a_run_given_twice_is_refused(folders):
    with pytest.raises(InputError, match=r"m0.*equal settings and seeds"):
        grouped(map(read_run, [folders[0], *folders]))


@pytest.mark.parametrize("name", ["report.json", "training_args.json", "trainer_state.json"])
def test_missing_and_broken_files_are_named(folders, name):
    (folders[0] / name).write_text("{")
    with pytest.raises(InputError, match=name):
        read_run(folders[0])
    (folders[0] / name).unlink()
    with pytest.raises(InputError, match=f"{name} is missing"):
        read_run(folders[0])


def test_rise_is_measured_after_the_minimum():
    assert rise_after_minimum(FALLING) == pytest.approx(0)
    assert rise_after_minimum([*FALLING, *reversed(FALLING)]) == pytest.approx(1.925 / 1.075 - 1)
    assert rise_after_minimum([3.0, *[1.0] * 99]) == pytest.approx(0)  # a fall is no rise
    assert rise_after_minimum([1.0] * 9) is None


def test_page_has_every_row_and_its_pictures(folders, tmp_path, capsys):
    report.main([*map(str, folders), "--output", str(tmp_path / "page" / "all.md"), "--title", "Everything"])
    text = (tmp_path / "page" / "all.md").read_text()
    assert capsys.readouterr().out == text
    assert "# Everything" in text
    assert "| a{0,1} | scan | AdamW | LM | 3000 | 2 | 50.0 | 91.0 ± 1.4 | +41.0 |  | 0.0 | 0.250 | 512 |" in text
    assert "| m{0,1} | scan | MeZO | LM | 5000 | 2 | 50.0 | 88.0 ± 2.8 | +38.0 | 92.7 |" in text
    assert "| v0 | scan | MeZO | LM + projector + vision | 5000 | 1 | 50.0 | 80.0 | +30.0 |  |" in text
    assert "| scan | 92.7 | 1 |" in text
    for name in ("all_loss_scan.png", "all_accuracy.png"):
        assert f"({name})" in text
        with Image.open(tmp_path / "page" / name) as image:
            assert image.size[0] >= 800
    content = json.loads((tmp_path / "page" / "all_rows.json").read_text())
    assert [row["gain"] for row in content["groups"]] == pytest.approx([0.41, 0.38, 0.30])
    assert [row["accuracy_after"] for row in content["groups"]] == pytest.approx([0.91, 0.88, 0.80])


def test_a_folder_of_runs_stands_for_all_of_them(folders, tmp_path):
    assert list(report.run_folders([tmp_path])) == sorted(folders)
    with pytest.raises(InputError, match="no report"):
        list(report.run_folders([tmp_path / "m0" / "nothing"]))


def test_runs_without_evaluation_have_a_row_without_accuracy(tmp_path):
    run = make_run(tmp_path / "r", 0.0, MEZO)
    content = json.loads((run / "report.json").read_text()) | {"accuracy_after": None, "accuracy_before": None}
    (run / "report.json").write_text(json.dumps(content))
    text = report.write([run], tmp_path / "page.md", "One")
    assert "| r | scan | MeZO | 5000 | 1 |  |  |  |" in text
    assert not (tmp_path / "page_accuracy.png").exists()


@pytest.mark.parametrize(
    ("value", "text"), [(1e-4, "1e-4"), (1.5e-6, "1.5e-6"), (0.01, "1e-2"), (0.0, "0"), (2.0, "2")]
)
def test_rates_are_written_as_people_do(value, text):
    row = {"settings": {"learning_rate": value}, "method": "AdamW"}
    assert report.setting(row, "learning_rate") == text


def test_validation_has_a_column_where_there_is_one(tmp_path):
    folders = [make_run(tmp_path / name, 0.9, MEZO, seed=seed) for seed, name in enumerate(("a", "b"))]
    assert "best validation" not in report.write(folders, tmp_path / "without.md", "Runs")
    for folder, value, step in zip(folders, (0.8, 0.9), (40, 60), strict=True):
        found = json.loads((folder / "report.json").read_text())
        found["validation"] = {"metric": "exact", "best": value, "best_step": step, "history": []}
        (folder / "report.json").write_text(json.dumps(found))
    text = report.write(folders, tmp_path / "with.md", "Runs")
    assert "| best validation |" in text and "| exact 0.8500 (step 40, 60) |" in text
    rows = json.loads((tmp_path / "with_rows.json").read_text())["groups"]
    assert rows[0]["best_validation"][1] == {"metric": "exact", "value": 0.9, "step": 60}


def test_the_page_must_be_markdown(folders, tmp_path, refused):
    assert "must end in .md" in refused(report.main, [str(folders[0]), "--output", str(tmp_path / "page.txt")])


def test_an_evaluation_on_another_set_is_another_group(folders, tmp_path):
    for folder, data in ((folders[0], "test.json"), (folders[3], "val.json")):
        summary = {"settings": {"data": f"data/{data}"}, "metric": "exact"}
        (folder / "eval_after.json").write_text(json.dumps(summary))
    groups = grouped(map(read_run, [folders[0], folders[3]]))
    assert [group.settings["evaluation"] for group in groups] == ["val.json, exact", "test.json, exact"]
    assert share_of_adamw(groups[1], groups) is None


def test_notes_stand_below_the_table(folders, tmp_path):
    text = report.write(folders, tmp_path / "page.md", "Title", ["One run diverged."])
    assert "\nOne run diverged.\n" in text


def test_runs_are_named_by_their_folders(tmp_path):
    assert report.names_of_runs(["a/x", "b/x", "b/y"]) == {"a/x": "a/x", "b/x": "b/x", "b/y": "y"}
    assert [report.together(names) for names in (["y"], ["run-s0", "run-s1"], ["a", "b"])] == [
        "y",
        "run-s{0,1}",
        "a, b",
    ]


def test_many_settings_fit_into_the_pictures(tmp_path, recwarn):
    """What is the same in all runs of a task and method is left out, and long lines are broken."""
    changes = {"learning_rate": 1e-3, "adapter": "lora", "zo_estimator": "one_point", "zo_rule": "normalized"}
    changes |= {"lr_scheduler_type": "constant", "zo_tensor_scales": "norms", "zo_weight_storage": "fixed16"}
    runs = [make_run(tmp_path / "a", 0.9, MEZO), make_run(tmp_path / "b", 0.8, MEZO | changes)]
    report.write([*runs, make_run(tmp_path / "c", 0.7, ADAMW)], tmp_path / "page.md", "Many")
    assert not [warning for warning in recwarn if "layout" in str(warning.message)]
    groups = grouped(map(read_run, runs))
    label = report._label(groups[1], report._telling(groups[1], groups))
    assert max(map(len, label.splitlines())) <= report.LABEL_WIDTH
    assert report._label(groups[0], report._telling(groups[0], groups[:1])) == "MeZO"


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        ("report.json", {"trainer_mode": None}, "has None under 'trainer_mode', which must be a text"),
        ("report.json", {"accuracy_after": "x"}, "has 'x' under 'accuracy_after', which must be a number or null"),
        ("report.json", None, "lacks 'trainer_mode'"),
        ("trainer_state.json", {"log_history": 3}, "its log_history is not the log of a run"),
        ("trainer_state.json", {"log_history": [{"loss": 1.0, "step": None}]}, "its log_history is not"),
    ],
)
def test_edited_files_are_named(name: str, change: dict[str, Any] | None, message: str, tmp_path: Path) -> None:
    file = make_run(tmp_path / "a", 0.9, MEZO) / name
    file.write_text(json.dumps({} if change is None else json.loads(file.read_text()) | change))
    with pytest.raises(InputError, match=rf"{name}: {message}"):
        read_run(tmp_path / "a")
