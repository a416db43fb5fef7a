"""The study's experiments: which runs they ask for, and how the pool does them."""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from pathlib import Path

import pytest

from llava.data.public_sets.br35h import PROMPTS
from llava.errors import InputError

STUDY = Path(__file__).parents[2] / "scripts" / "study"
sys.path.insert(0, str(STUDY))

import prompts  # noqa: E402
import rate_and_eps  # noqa: E402
import run_pool  # noqa: E402
import settings  # noqa: E402


@pytest.fixture
def options(tmp_path):
    given = ["--output", str(tmp_path / "out"), "--jobs", "2", "--data", str(tmp_path / "data"), "--seeds", "0", "1"]
    parsed = settings.study_parser("").parse_args(given)
    return argparse.Namespace(**vars(parsed))


@pytest.fixture
def task(tmp_path):
    folder = tmp_path / "data" / "scan"
    folder.mkdir(parents=True)
    turns = [{"from": "human", "value": "<image>\n?"}, {"from": "gpt", "value": "Yes"}]
    for split in ("train", "val", "test"):
        (folder / f"{split}.json").write_text(json.dumps([{"id": split, "image": "a.png", "conversations": turns}]))
    return settings.Task("scan", folder, folder)


@pytest.fixture
def started(monkeypatch):
    """Runs that were started, by name; the processes are stood in for by files that they would leave."""
    runs = []
    codes = {}

    def process(words, env=None, stdout=None, stderr=None, check=False):
        if "llava.eval.accuracy" in words:
            answers = Path(words[words.index("--output") + 1])
            answers.write_text("")
            answers.with_suffix(".json").write_text('{"accuracy": 0.5}')
            return subprocess.CompletedProcess(words, 0)
        folder = Path(env["OUTPUT_DIR"])
        runs.append(folder.name)
        assert (folder / "eval_before.json").exists()
        (folder / "model.safetensors").write_text("w")
        (folder / "checkpoint-3").mkdir(exist_ok=True)
        code = next((code for part, code in codes.items() if part in folder.name), 0)
        stdout.write("what went wrong\n")
        if code == 0:
            (folder / "report.json").write_text('{"accuracy_after": 0.75}')
        return subprocess.CompletedProcess(words, code)

    monkeypatch.setattr(run_pool.subprocess, "run", process)
    return argparse.Namespace(runs=runs, codes=codes)


def two_runs(options, task):
    return [run_pool.usual_run(options, "mezo", task, "lm", seed) for seed in options.seeds]


def test_a_pool_does_each_run_once(options, task, started):
    runs = two_runs(options, task)
    folders = run_pool.run_all([*runs, runs[0]], options)
    assert sorted(started.runs) == ["scan-mezo-lm-lr1e-4-n5000-s0", "scan-mezo-lm-lr1e-4-n5000-s1"]
    assert [folder.name for folder in folders] == [run.name for run in runs]
    run_pool.run_all(runs, options)
    assert len(started.runs) == 2


@pytest.mark.parametrize("keep", [False, True])
def test_weights_go_unless_they_are_kept(options, task, started, keep):
    options.keep_models = keep
    (folder,) = run_pool.run_all(two_runs(options, task)[:1], options)
    assert (folder / "model.safetensors").exists() == (folder / "checkpoint-3").exists() == keep


def test_a_diverged_run_is_done_and_has_no_report(options, task, started):
    started.codes["s1"] = 3
    folders = run_pool.run_all(two_runs(options, task), options)
    assert [folder.name[-2:] for folder in folders] == ["s0"]
    run_pool.run_all(two_runs(options, task), options)
    assert len(started.runs) == 2


def test_a_failed_run_ends_the_pool_with_its_log(options, task, started):
    started.codes["s0"] = 2
    with pytest.raises(SystemExit, match=r"(?s)s0: failed with exit code 2.*what went wrong"):
        run_pool.run_all(two_runs(options, task), options)
    started.codes.clear()
    assert len(run_pool.run_all(two_runs(options, task), options)) == 2  # nothing of it counts as done


def test_no_run_starts_after_the_deadline(options, task, started, capsys):
    assert run_pool.run_all(two_runs(options, task), options, deadline=0.0) == []
    assert not started.runs
    assert "2 runs left" in capsys.readouterr().err


def test_command_has_the_settings_of_the_run(options, task):
    run = run_pool.usual_run(options, "mezo", task, "lm+projector+vision", 4, zo_eps="1e-2")
    words = run_pool.command(run, options)
    flags = dict(zip(words[3::2], words[4::2], strict=True))
    assert words[1].endswith("mezo_onevision_si.sh") and words[2] == "demo"
    assert (flags["--seed"], flags["--zo_seed"], flags["--zo_eps"]) == ("4", "4", "1e-2")
    assert flags["--mm_vision_tower_lr"] == flags["--learning_rate"] == "1e-4"
    assert "--mm_feature_cache" not in flags  # the tower is trained


def test_real_presets_take_the_study_s_rate_and_tiles(options, task):
    options.preset = "0.5b"
    words = run_pool.command(run_pool.usual_run(options, "adamw", task), options)
    assert words[words.index("--learning_rate") + 1] == "1e-6"
    assert "--image_aspect_ratio" not in words
    assert run_pool.model_of(options) == "lmms-lab/llava-onevision-qwen2-0.5b-si"


def test_runs_that_differ_have_different_names(options, task):
    changes = [{}, {"zo_eps": "1e-2"}, {"split": "val"}, {"max_steps": 7}, {"per_device_train_batch_size": 1}]
    runs = [run_pool.usual_run(options, "mezo", task, **change) for change in changes]
    runs += [run_pool.usual_run(options, "adamw", task), run_pool.usual_run(options, "mezo", task, "lm+projector")]
    assert len({run.name for run in runs}) == len(runs)


def test_tasks_are_checked(options, task):
    options.tasks = ["scan"]
    assert settings.chosen_tasks(options) == [settings.Task("scan", task.folder.resolve(), task.folder.resolve())]
    options.tasks = ["scans"]
    with pytest.raises(InputError, match="scan, figure, chart"):
        settings.chosen_tasks(options)
    options.tasks, options.preset = None, "0.5b"
    with pytest.raises(InputError, match=r"br35h/train\.json"):
        settings.chosen_tasks(options)
    options.data = None
    with pytest.raises(InputError, match="needs --data"):
        settings.chosen_tasks(options)


@pytest.mark.parametrize("number", [1, 7])
def test_prompts_change_the_human_turn_alone(task, tmp_path, number):
    asked = prompts.with_prompt(task, number, tmp_path / "asked")
    (before,), (after,) = (json.loads(each.file("test").read_text()) for each in (task, asked))
    assert after["conversations"][0]["value"] == PROMPTS[number - 1]
    before["conversations"][0]["value"] = after["conversations"][0]["value"]
    assert after == before and asked.images == task.images


def test_the_grid_starts_in_the_middle_and_finds_the_best(options, task, started, tmp_path):
    options.rates, options.eps, options.method, options.seeds = ["1e-5", "1e-4", "1e-3"], ["1e-3"], "mezo", [0]
    started.codes["lr1e-3"] = 3
    runs = rate_and_eps.grid(options, task)
    assert next(iter(runs)) == ("1e-4", "1e-3")
    run_pool.run_all([runs["1e-4", "1e-3"], runs["1e-3", "1e-3"]], options)
    assert rate_and_eps.accuracies(runs, options.output / "runs") == {("1e-4", "1e-3"): 75.0, ("1e-3", "1e-3"): None}
    lines = rate_and_eps.page({task: runs}, options)
    assert "| scan | 50.0 | 75.0 | 1e-4 | 1e-3 |" in lines
    assert (options.output / "rate_and_eps_scan.png").stat().st_size > 5000
