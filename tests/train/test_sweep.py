"""Sweeps: the space, what is refused, trials that are stopped, fail, diverge and go on, and one of real runs."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from llava.errors import InputError
from llava.runs import run_folder
from llava.train.sweep import __main__ as sweep_command
from llava.train.sweep import runner, search, trial
from llava.train.sweep.space import Parameter, parse_space

main = sweep_command.main
STAND_IN = Path(__file__).parent / "stand_in_run.py"


class TestSpace:
    """From text or a file to parameters."""

    def test_ranges_and_choices(self) -> None:
        assert parse_space("learning_rate=log:1e-6:1e-3,adapter_r=4|8|16, zo_num_directions=log:1:8") == [
            Parameter("learning_rate", low=1e-6, high=1e-3, log=True),
            Parameter("adapter_r", ("4", "8", "16")),
            Parameter("zo_num_directions", low=1, high=8, log=True, whole=True),
        ]

    def test_a_value_may_hold_commas(self) -> None:
        (one,) = parse_space("mm_tunable_parts=mm_language_model|mm_language_model,mm_mlp_adapter")
        assert one.choices == ("mm_language_model", "mm_language_model,mm_mlp_adapter")

    def test_a_file_says_the_same(self, tmp_path: Path) -> None:
        (tmp_path / "space.yaml").write_text("learning_rate: log:1e-6:1e-3\nadapter_r: [4, 8]\n")
        found = parse_space(str(tmp_path / "space.yaml"))
        assert found == parse_space("learning_rate=log:1e-6:1e-3,adapter_r=4|8")

    @pytest.mark.parametrize(
        ("text", "message"),
        [
            ("nowhere.yaml", "neither a file nor NAME=VALUES"),
            ("lerning_rate=1|2", "train.py has no flag --lerning_rate"),
            ("learning_rate=log:1e-3", "two numbers are needed"),
            ("learning_rate=log:0:1", "LOW must be above 0"),
            ("learning_rate=log:2:1", "LOW must be below HIGH"),
            ("zo_num_directions=log:1:2.5", "two whole numbers are needed"),
            ("zo_rule=uniform:0:1", "--zo_rule is no number"),
            ("learning_rate=1|1", "there twice"),
            ("learning_rate=1|", "a value is empty"),
            ("learning_rate=1,learning_rate=2", "learning_rate is there twice"),
            ("output_dir=a|b", "one --output_dir for all trials"),
        ],
    )
    def test_what_cannot_be_read_is_refused(self, text: str, message: str) -> None:
        with pytest.raises(InputError, match=message):
            parse_space(text)


@pytest.fixture
def given(small_run: Callable[..., list[str]], golden: Path, tmp_path: Path) -> Any:
    """Words of a sweep of `space`, with options of its own, and flags of train.py that differ."""

    def make(space: str, options: tuple[str, ...] = ("--budget", "1"), **changes: Any) -> list[str]:
        settings = {"max_steps": 6, "eval_steps": 1, "eval_data_path": golden / "fullmodel" / "data" / "data.json"}
        of_trials = dict.fromkeys(
            ("learning_rate", "lr_scheduler_type", "logging_steps", "save_strategy", "output_dir")
        )
        words = small_run(**settings | of_trials | changes)
        own = ["--space", space, "--output", str(tmp_path / "sweep"), "--metric", "accuracy", *options]
        return [*own, "--", *words]

    return make


@pytest.fixture
def stand_in(monkeypatch: pytest.MonkeyPatch) -> None:
    """Trials are runs of `stand_in_run.py`, which take no time."""
    popen = trial.subprocess.Popen

    def start(words: list[str], **options: Any) -> Any:
        assert words[:3] == [sys.executable, "-m", "llava.train.train"]
        own = words[words.index("--learning_rate") :]
        return popen([sys.executable, str(STAND_IN), *own], **options)

    monkeypatch.setattr(trial.subprocess, "Popen", start)
    monkeypatch.setattr(runner, "POLL_SECONDS", 0.01)


def outcomes(folder: Path) -> list[str]:
    files = sorted((folder / "sweep" / "trials").glob("*/trial.json"))
    return [str(json.loads(file.read_text()).get("outcome")) for file in files]


@pytest.mark.parametrize(
    ("space", "changes", "message"),
    [
        ("learning_rate=1e-3|-1", {}, "learning_rate"),
        ("learning_rate=1e-3", {"eval_data_path": None}, "--eval_data_path is missing"),
        ("learning_rate=1e-3", {"learning_rate": 1e-3}, "--learning_rate is in --space and among the flags"),
        ("learning_rate=1e-3", {"output_dir": "x"}, "--output_dir is set by the sweep"),
        ("learning_rate=1e-3", {"eval_metric": "loss"}, "--metric accuracy excludes --eval_metric loss"),
        ("learning_rate=1e-3", {"eval_data_path": "none.json"}, "--eval_data_path none.json: no such file"),
        ("zo_rule=sgd|adamw", {}, "zo_rule"),
        ("zo_on_divergence=stop|halve", {}, "--zo_on_divergence halve: a sweep ends trials"),
        ("learning_rate=1e-3", {"max_stepz": 4}, "unknown flag --max_stepz"),
    ],
)
def test_what_no_trial_could_do_is_refused_at_once(
    given: Any, refused: Callable[..., str], space: str, changes: dict[str, Any], message: str
) -> None:
    assert message in refused(main, given(space, **changes))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--budget", "0"), "--budget 0: hours, above 0"),
        (("--budget", "1", "--jobs", "0"), "--jobs 0: at least 1"),
        (("--budget", "1", "--halving", "1"), "--halving 1: 2 or more"),
    ],
)
def test_options_out_of_range_are_refused(
    given: Any, refused: Callable[..., str], options: tuple[str, ...], message: str
) -> None:
    assert message in refused(main, given("learning_rate=1e-3", options))


def test_without_optuna_it_says_how_to_get_it(
    given: Any, refused: Callable[..., str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(search.importlib.util, "find_spec", lambda name: None)
    assert "pip install optuna" in refused(main, given("learning_rate=1e-3"))


def test_a_dry_run_lists_and_starts_nothing(given: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    main(given("learning_rate=log:1e-5:1e-2", ("--budget", "1", "--dry_run", "--trials", "3")))
    lines = capsys.readouterr().out.splitlines()
    assert [line[:12] for line in lines[:3]] == ["new, trial 0", "new, trial 1", "new, trial 2"] and len(lines) == 4
    assert f"--mm_feature_cache {tmp_path / 'sweep' / 'features'}" in lines[0]
    assert "--eval_metric exact" in lines[0] and not (tmp_path / "sweep").exists()


def test_a_sweep_finds_the_best_and_says_it(
    given: Any, stand_in: None, tmp_path: Path, capsys: pytest.CaptureFixture[str], refused: Callable[..., str]
) -> None:
    words = given("learning_rate=1e-3|1e-2|1e-1", ("--budget", "1", "--trials", "5", "--jobs", "2", "--halving", "0"))
    main(words)
    best = json.loads((tmp_path / "sweep" / "best.json").read_text())
    assert best["values"] == {"learning_rate": "1e-3"} and best["value"] == 1.0 and best["metric"] == "exact"
    command = (tmp_path / "sweep" / "best.txt").read_text()
    assert command == best["command"] + "\n" and "--learning_rate 1e-3" in command
    assert command in capsys.readouterr().out
    page = (tmp_path / "sweep" / "sweep.md").read_text()
    assert page.count("\n| ") == 4 and "| best |" in page
    for picture in ("map.png", "curves.png"):
        assert f"]({picture})" in page and (tmp_path / "sweep" / picture).exists()
    assert not list((tmp_path / "sweep" / "trials").glob("*/*.safetensors"))
    main(words)  # all three values have been tried
    assert outcomes(tmp_path) == ["finished"] * 3
    other = given("learning_rate=1e-3|1e-2", ("--budget", "1"))
    assert "has a sweep with another space" in refused(main, other)


class TestSearch:
    """Of values, without runs."""

    def test_the_worse_are_stopped_at_the_same_point(self) -> None:
        found = search.Search(parse_space("learning_rate=1|2|3|4"), None, True, halving=2, seed=0)
        trials = [drawn[0] for drawn in iter(found.draw, None)]
        assert not found.report(trials[0], {0: 0.0, 10: 0.5, 20: 0.6})
        assert not found.report(trials[1], {10: 0.4}), "one evaluation is not enough to tell"
        assert found.report(trials[1], {10: 0.4, 20: 0.5})
        assert not found.report(trials[2], {10: 0.4, 20: 0.7, 30: 0.1}), "nor is the third one that counts"
        assert not found.report(trials[2], {10: 0.4, 20: 0.7, 30: 0.1}), "what was told is not told again"
        found.give_up(trials[0], "diverged: later")
        found.give_up(trials[2], "diverged: later")
        assert not found.report(trials[3], {10: 0.4, 20: 0.55}), "of those that did not diverge it is the best"

    def test_no_values_are_tried_twice(self) -> None:
        found = search.Search(parse_space("learning_rate=1|2,zo_eps=3|4"), None, False, halving=0, seed=0)
        drawn = [one[1] for one in iter(found.draw, None)]
        assert len(drawn) == 4 == len({tuple(one.items()) for one in drawn})

    def test_a_seed_and_what_came_before_decide(self, tmp_path: Path) -> None:
        space = parse_space("learning_rate=log:1e-6:1e-3")

        def values(folder: Path | None, again: bool) -> list[dict[str, str]]:
            found = search.Search(space, folder, True, 3, seed=5)
            drawn = []
            for number in range(4):
                if again and number == 2:
                    found = search.Search(space, folder, True, 3, seed=5)
                trial, one = found.draw() or (None, {})
                found.finish(trial, number)
                drawn.append(one)
            return drawn

        assert values(None, False) == values(tmp_path, True)

    def test_trials_that_ran_are_unfinished(self, tmp_path: Path) -> None:
        space = parse_space("learning_rate=log:1e-6:1e-3")
        first = search.Search(space, tmp_path, True, 3, 0)
        numbers = [(first.draw() or (None,))[0].number for _ in range(2)]
        first.finish(first.unfinished()[0], 0.5)
        again = search.Search(space, tmp_path, True, 3, 0)
        assert [trial.number for trial in again.unfinished()] == numbers[1:]
        again.give_up(again.unfinished()[0], "diverged")
        assert not again.unfinished() and again.count() == 2


def test_what_diverges_is_stopped_and_what_fails_is_told(given: Any, stand_in: None, tmp_path: Path) -> None:
    main(given("learning_rate=0.5", ("--budget", "1", "--trials", "1")))
    assert outcomes(tmp_path) == ["diverged: the validation at step 1 was not finite"]
    assert "No trial has finished" in (tmp_path / "sweep" / "sweep.md").read_text()


def test_a_journal_that_diverges_stops_its_trial(
    given: Any, stand_in: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(trial.TrialRun, "diverges", lambda self, now=False: "diverged by step 75: so it is")
    main(given("learning_rate=0.125", ("--budget", "1", "--trials", "1")))
    assert outcomes(tmp_path) == ["diverged by step 75: so it is"]
    assert "diverged by step 75: so it is |" in (tmp_path / "sweep" / "sweep.md").read_text()


def test_a_sweep_whose_trials_all_fail_ends(
    given: Any, stand_in: None, tmp_path: Path, refused: Callable[..., str]
) -> None:
    said = refused(main, given("learning_rate=0.21|0.22|0.23|0.24"))
    assert "3 trials failed one after the other" in said and "no memory is left" in said
    assert (tmp_path / "sweep" / "sweep.md").read_text().count("| failed: exit code 1") == 3


def interrupt_after_two_steps(patch: pytest.MonkeyPatch) -> None:
    """Ctrl-C, once, when a trial hangs after its second step."""
    read, pressed = trial.curve, []

    def curve(folder: Path) -> dict[int, float | None]:
        points = read(folder)
        if len(points) == 2 and not pressed:
            pressed.append(True)
            raise KeyboardInterrupt
        return points

    patch.setattr(trial, "curve", curve)


@pytest.mark.parametrize("killed", [False, True])
def test_an_unfinished_trial_goes_on_where_it_was(
    given: Any, stand_in: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, killed: bool
) -> None:
    """After Ctrl-C, and as after kill -9: nothing is taken down, and the trial's process is gone."""

    def kill(self: runner.Runner) -> None:
        for _, run in self._running.values():
            run.process.kill()
            run.process.wait()

    words, folder = given("learning_rate=0.125", ("--budget", "1", "--trials", "1")), tmp_path / "sweep"
    with monkeypatch.context() as patch, pytest.raises(SystemExit) as stop:
        interrupt_after_two_steps(patch)
        if killed:
            patch.setattr(runner.Runner, "_leave", kill)
        main(words)
    assert stop.value.code == 130 and outcomes(tmp_path) == ["None"]
    assert "| unfinished |" in (folder / "sweep.md").read_text()
    assert bool(trial.noted(folder / "trials" / "0000").get("pid")) == killed
    main(words)
    assert outcomes(tmp_path) == ["finished"]
    log = (folder / "trials" / "0000" / "log.txt").read_text().splitlines()
    assert log == ["began after step 0", "began after step 2"]


def test_one_process_has_a_sweep(given: Any, tmp_path: Path, refused: Callable[..., str]) -> None:
    with run_folder.held_alone(tmp_path / "sweep", "--output"):
        assert "another process works there" in refused(main, given("learning_rate=1"))


def test_a_budget_ends_and_leaves_what_runs(given: Any, stand_in: None, tmp_path: Path) -> None:
    main(given("learning_rate=0.125", ("--budget", "1e-5", "--trials", "1")))
    assert outcomes(tmp_path) == ["None"]


@pytest.mark.slow
def test_real_runs(given: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    options = ("--budget", "1", "--trials", "3", "--jobs", "3", "--halving", "0")
    words = given("learning_rate=log:1e-5:1e-2,zo_eps=1e-3|1e-2", options, max_steps=2, eval_metric="loss")
    words[words.index("--metric") + 1] = "loss"
    main(words)
    assert outcomes(tmp_path) == ["finished"] * 3
    reports = [json.loads(file.read_text()) for file in (tmp_path / "sweep" / "trials").glob("*/report.json")]
    best = json.loads((tmp_path / "sweep" / "best.json").read_text())
    assert best["value"] == min(report["validation"]["history"][-1]["value"] for report in reports)
