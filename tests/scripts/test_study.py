"""The study's experiments: which runs they ask for, and how the pool does them."""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from llava.data.public_sets.br35h import PROMPTS
from llava.errors import InputError
from llava.mezo import curvature

STUDY = Path(__file__).parents[2] / "scripts" / "study"
sys.path.insert(0, str(STUDY))

import adapters  # noqa: E402
import algorithms  # noqa: E402
import by_layer  # noqa: E402
import candidates  # noqa: E402
import order  # noqa: E402
import planned_run  # noqa: E402
import prompts  # noqa: E402
import rate_and_eps  # noqa: E402
import rounding  # noqa: E402
import run_pool  # noqa: E402
import settings  # noqa: E402
import snippets  # noqa: E402


@pytest.fixture
def options(tmp_path):
    given = ["--output", str(tmp_path / "out"), "--jobs", "2", "--data", str(tmp_path / "data"), "--seeds", "0", "1"]
    return settings.parsed(candidates.candidates_parser("", {}), given)


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
    """Names of the runs that were started; processes are stood in for by the files that they would leave."""
    names, codes = [], {}

    def accuracy(words):
        answers = Path(words[words.index("--output") + 1])
        names.append("zero shot")
        answers.write_text("")
        answers.with_suffix(".json").write_text('{"accuracy": 0.5, "complete": true}')
        return subprocess.CompletedProcess(words, 0)

    def process(self, words, environment, log):
        folder = Path(environment["OUTPUT_DIR"])
        names.append(folder.name)
        assert (folder / "eval_before.json").exists() != ("bits" in folder.name)  # which begins with other weights
        (folder / "model.safetensors").write_text("w")
        (folder / "checkpoint-3").mkdir(exist_ok=True)
        code = next((code for part, code in codes.items() if part in folder.name), 0)
        log.write(b"what went wrong\n")
        if code == 0:
            (folder / "report.json").write_text('{"accuracy_after": 0.75}')
        return code

    monkeypatch.setattr(run_pool.subprocess, "run", accuracy)
    monkeypatch.setattr(run_pool.Pool, "_process", process)
    return argparse.Namespace(names=names, codes=codes)


def two_runs(options, task):
    return [planned_run.usual_run(options, "mezo", task, "lm", seed) for seed in options.seeds]


def test_a_pool_does_each_run_once(options, task, started):
    runs = two_runs(options, task)
    folders = run_pool.Pool(options).do([*runs, runs[0]])
    assert sorted(started.names) == ["scan-mezo-lm-lr1e-4-n5000-s0", "scan-mezo-lm-lr1e-4-n5000-s1", "zero shot"]
    assert [folder.name for folder in folders] == [run.name for run in runs]
    run_pool.Pool(options).do(runs)
    assert len(started.names) == 3


def test_a_run_on_a_quantised_base_answers_for_itself_before(options, task, started):
    pool = run_pool.Pool(options)
    (folder,) = pool.do([planned_run.usual_run(options, "adamw", task, bits=4)])
    assert not (folder / "eval_before.json").exists()


def test_an_unfinished_zero_shot_evaluation_goes_on(options, task, started):
    pool = run_pool.Pool(options)
    pool.zero_shot(task, "test").with_suffix(".json").write_text('{"complete": false}')
    assert pool.zero_shot_accuracy(task, "test") == 0.5
    assert started.names == ["zero shot"] * 2


@pytest.mark.parametrize("keep", [False, True])
def test_weights_go_unless_they_are_kept(options, task, started, keep):
    options.keep_models = keep
    (folder,) = run_pool.Pool(options).do(two_runs(options, task)[:1])
    assert (folder / "model.safetensors").exists() == (folder / "checkpoint-3").exists() == keep


def test_a_diverged_run_is_done_and_is_named(options, task, started, monkeypatch):
    started.codes["s1"] = 3
    pages = []
    monkeypatch.setattr(run_pool, "write", lambda *given: pages.append(given) or "the page")
    pool = run_pool.Pool(options)
    assert pool.page(two_runs(options, task), "name", "Title") == "the page"
    ((folders, page, title, notes),) = pages
    assert [folder.name[-2:] for folder in folders] == ["s0"] and (page.name, title) == ("name.md", "Title")
    assert len(notes) == 1 and "scan-mezo-lm-lr1e-4-n5000-s1" in notes[0]
    pool.do(two_runs(options, task))
    assert len(started.names) == 3


def test_a_failed_run_ends_the_pool_with_its_log(options, task, started):
    started.codes["s0"] = 2
    with pytest.raises(SystemExit, match=r"(?s)s0: exit code 2.*what went wrong"):
        run_pool.Pool(options).do(two_runs(options, task))
    started.codes.clear()
    assert len(run_pool.Pool(options).do(two_runs(options, task))) == 2  # nothing of it counts as done


def test_no_run_starts_after_the_first_failure(options, task, started):
    options.jobs, options.seeds = 1, list(range(6))
    started.codes["s0"] = 2
    with pytest.raises(SystemExit):
        run_pool.Pool(options).do(two_runs(options, task))
    assert len(started.names) < 6


def test_no_run_starts_after_the_deadline(options, task, started, capsys):
    pool = run_pool.Pool(options)
    assert pool.do(two_runs(options, task), deadline=0.0) == []
    assert started.names == ["zero shot"]
    assert "2 runs left" in capsys.readouterr().err
    with pytest.raises(InputError, match="no run of 2 has finished"):
        pool.page(two_runs(options, task), "name", "Title", deadline=0.0)


@pytest.mark.parametrize("change", [{"model": "another"}, {"preset": "7b"}])
def test_a_pool_has_one_model(options, task, started, change):
    runs = two_runs(options, task)
    run_pool.Pool(options).do(runs)
    other = argparse.Namespace(**vars(options) | change)
    with pytest.raises(InputError, match="of another model"):
        run_pool.Pool(other).do(runs)


def test_a_pool_has_one_data_folder_a_task(options, task, started, tmp_path):
    pool = run_pool.Pool(options)
    pool.do(two_runs(options, task))
    elsewhere = settings.Task("scan", tmp_path / "other", tmp_path / "other")
    with pytest.raises(InputError, match="of another task scan"):
        pool.do(two_runs(options, elsewhere))


def test_command_has_the_settings_of_the_run(options, task):
    run = planned_run.usual_run(options, "mezo", task, "lm+projector+vision", 4, zo_eps="1e-2")
    words = planned_run.words_of(run, options)
    flags = dict(zip(words[3::2], words[4::2], strict=True))
    assert words[1].endswith("mezo_onevision_si.sh") and words[2] == "demo"
    assert (flags["--seed"], flags["--zo_seed"], flags["--zo_eps"]) == ("4", "4", "1e-2")
    assert flags["--mm_vision_tower_lr"] == flags["--learning_rate"] == "1e-4"
    assert "--mm_feature_cache" not in flags  # the tower is trained


def test_real_presets_take_the_study_s_rate_and_tiles(options, task):
    options.preset = "0.5b"
    words = planned_run.words_of(planned_run.usual_run(options, "adamw", task), options)
    assert words[words.index("--learning_rate") + 1] == "1e-6"
    assert "--image_aspect_ratio" not in words
    assert settings.model_of(options) == "lmms-lab/llava-onevision-qwen2-0.5b-si"


def test_runs_share_the_gpus_that_may_be_used(options, task, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3,GPU-7f")
    monkeypatch.setenv("NUM_GPUS", "8")
    run = planned_run.usual_run(options, "mezo", task)
    found = [planned_run.environment_of(run, Path("out"), options, slot) for slot in range(3)]
    assert [environment["CUDA_VISIBLE_DEVICES"] for environment in found] == ["3", "GPU-7f", "3"]
    assert {(environment["NUM_GPUS"], environment["EVAL_METRIC"]) for environment in found} == {("1", "exact")}


def test_runs_that_differ_have_different_names(options, task):
    changes = [{}, {"zo_eps": "1e-2"}, {"split": "val"}, {"max_steps": 7}, {"per_device_train_batch_size": 1}]
    runs = [planned_run.usual_run(options, "mezo", task, **change) for change in changes]
    runs += [
        planned_run.usual_run(options, "adamw", task),
        planned_run.usual_run(options, "mezo", task, "lm+projector"),
    ]
    assert len({run.name for run in runs}) == len(runs)


@pytest.mark.parametrize("words", [["--jobs", "0"], ["--steps", "-3"], ["--seeds", "x"]])
def test_numbers_are_checked(words, refused):
    assert "must be a whole number from" in refused(settings.parsed, settings.study_parser(""), words)


def test_presets_have_pools_of_their_own():
    outputs = [settings.parsed(settings.study_parser(""), ["--preset", name]).output for name in ("0.5b", "7b")]
    assert outputs == [Path("runs/study/0.5b"), Path("runs/study/7b")]


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


def test_prompts_are_run_at_the_rate_of_their_task(options, task, started, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(run_pool, "write", lambda *given: "the page\n")
    monkeypatch.setattr(
        sys, "argv", ["prompts.py", "--data", str(tmp_path / "data"), "--output", str(tmp_path / "out")]
    )
    prompts.main()
    assert "scan-prompt3-mezo-lm-lr1e-4-n250-s2" in started.names
    text = (tmp_path / "out" / "prompts.md").read_text()
    assert text.count("| 50.0 | 75.0, 75.0, 75.0 | 75.0 |") == len(PROMPTS)


def test_the_grid_starts_in_the_middle_and_finds_the_best(options, task, started, tmp_path):
    options.rates, options.eps, options.method, options.seeds = ["1e-5", "1e-4", "1e-3"], ["1e-3"], "mezo", [0]
    started.codes["lr1e-3"] = 3
    runs = rate_and_eps.grid(options, task)
    assert next(iter(runs)) == ("1e-4", "1e-3")
    pool = run_pool.Pool(options)
    pool.do([runs["1e-4", "1e-3"], runs["1e-3", "1e-3"]])
    assert rate_and_eps.accuracies(runs, pool) == {("1e-4", "1e-3"): 75.0, ("1e-3", "1e-3"): None}
    lines = rate_and_eps.best_and_maps({task: runs}, pool, options)
    assert "| scan | 50.0 | 75.0 | 1e-4 | 1e-3 |" in lines
    assert (options.output / "rate_and_eps_scan.png").stat().st_size > 5000


@pytest.mark.parametrize(
    ("name", "steps"),
    [("mezo", 5000), ("one_point", 10000), ("fzoo", 1111), ("fzoo16", 588), ("guided", 1666), ("grown", 2200)],
)
def test_candidates_have_equal_sample_forwards(name, steps):
    assert algorithms.CANDIDATES[name].steps(5000) == steps


def test_a_curve_is_the_mean_over_the_seeds():
    assert algorithms.averaged([[(0, 50.0), (8, 60.0)], [(0, 50.0), (8, 70.0)]]) == [(0, 50.0), (8, 65.0)]


def test_a_candidate_is_judged_at_its_best_rate(options, task, started, monkeypatch):
    """On the test set with every seed, once all of its rates have been tried on the validation set."""
    options.sizes = Path("sizes.json")
    sized = algorithms.CANDIDATES["sized"]
    runs = candidates.searched(sized, task, options)
    assert list(runs) == ["8e-4", "4e-4", "1.6e-3"]
    assert all(run.split == "val" and run.flags["--zo_tensor_scales"] == "sizes.json" for run in runs.values())
    pool = run_pool.Pool(options)
    found = {"8e-4": 0.5, "4e-4": 0.7}
    monkeypatch.setattr(pool, "accuracy", lambda run: found.get(run.flags["--learning_rate"]))
    assert candidates.Case("sized", sized, task, runs).finals(pool, options) == []
    found["1.6e-3"] = 0.6
    finals = candidates.Case("sized", sized, task, runs).finals(pool, options)
    assert [(run.seed, run.split, run.flags["--learning_rate"]) for run in finals] == [
        (0, "test", "4e-4"),
        (1, "test", "4e-4"),
    ]


def test_adapters_are_compared_with_all_weights(options, task, started, monkeypatch):
    """Shares are of the gain that AdamW has on all weights, and a rate that was not tried is not a result."""
    monkeypatch.setattr(candidates, "chosen_tasks", lambda options: [task])
    monkeypatch.setattr(adapters, "FULL", {"adamw": ("1e-4",), "mezo": ("1e-4",)})
    known = adapters.candidates()
    assert known["mezo-prompt"].rates == ["0.07", "0.2", "0.6"] and known["mezo-prompt"].flags["zo_eps"] == "0.1"
    cases = candidates.cases_of({name: known[name] for name in ("adamw-none", "adamw-lora")}, options)
    pool = run_pool.Pool(options)
    values = {"none": 0.9, "lora": 0.7}
    monkeypatch.setattr(pool, "accuracy", lambda run: values[run.flags.get("--adapter", "none")])
    report = {"trainable_parameters": 1234, "seconds_per_step": 0.04}
    monkeypatch.setattr(pool, "report", lambda run: report)
    lines = adapters.tables(cases, pool, options)
    assert "Before: 50.0 %." in lines
    assert "| adamw-none | 1e-4: 90.0 | 90.0 ± 0.0 (2) | 100 | 1,234 | 40 |" in lines
    assert "| adamw-lora | 0.0003: 70.0, 0.001: 70.0, 0.003: 70.0 | 70.0 ± 0.0 (2) | 50 | 1,234 | 40 |" in lines
    monkeypatch.setattr(pool, "accuracy", lambda run: None)
    lines = adapters.tables(cases, pool, options)
    assert "| adamw-lora | 0.0003: not run, 0.001: not run, 0.003: not run |  |  |  |  |" in lines


def test_rates_of_one_task_hold_for_all(options, task, monkeypatch):
    figure = settings.Task("figure", task.folder, task.images)
    monkeypatch.setattr(candidates, "chosen_tasks", lambda options: [task, figure])
    options.rates_on = "figure"
    known = {"mezo": candidates.Candidate("mezo", ["1e-4", "1e-3"])}
    cases = candidates.cases_of(known, options)
    assert [case.task.name for case in cases] == ["scan", "figure"]
    assert all(run.task == figure and run.split == "val" for case in cases for run in case.tried.values())
    pool = run_pool.Pool(options)
    monkeypatch.setattr(pool, "accuracy", lambda run: {"1e-4": 0.4, "1e-3": 0.6}[run.flags["--learning_rate"]])
    finals = [run for case in cases for run in case.finals(pool, options)]
    assert [(run.task.name, run.split, run.flags["--learning_rate"]) for run in finals[::2]] == [
        ("scan", "test", "1e-3"),
        ("figure", "test", "1e-3"),
    ]
    options.rates_on = "chart"
    with pytest.raises(InputError, match=r"--rates_on chart: of the tasks of this call \(scan, figure\)"):
        candidates.cases_of(known, options)


def test_orders_are_compared_in_pairs(options, task, monkeypatch):
    monkeypatch.setattr(order, "chosen_tasks", lambda options: [task])
    found = order.pairs(options)
    assert [(a.seed, b.seed) for a, b in found["scan"]] == [(0, 0), (1, 1)]
    pool = run_pool.Pool(options)
    values = {("off", 0): 0.5, ("auto", 0): 0.6, ("off", 1): 0.5, ("auto", 1): 0.52}
    monkeypatch.setattr(pool, "accuracy", lambda run: values[run.flags["--stratify_answers"], run.seed])
    assert order.differences(found, pool)[-1] == "| scan | 2 | +10.0, +2.0 | +6.0 ± 4.0 |"


@pytest.fixture
def sentences(tmp_path):
    """Flags that name a small model of text, and sentences for it."""
    words = ["<pad>", "<unk>", "great", "terrible", "It", "was", *"abcdefgh"]
    tokenizer = Tokenizer(WordLevel({word: k for k, word in enumerate(words)}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = Whitespace()
    model = tmp_path / "model"
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="<pad>", unk_token="<unk>").save_pretrained(model)
    sizes = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2}
    heads = {"num_attention_heads": 2, "num_key_value_heads": 2}
    LlamaForCausalLM(LlamaConfig(vocab_size=len(words), **sizes, **heads)).save_pretrained(model)
    for split, number in (("train", 20), ("val", 6), ("test", 8)):
        records = [
            {
                "conversations": [
                    {"from": "human", "value": f"{'abcd'[k % 4]} It was"},
                    {"from": "gpt", "value": "great" if k % 2 else "terrible"},
                ]
            }
            for k in range(number)
        ]
        (tmp_path / f"{split}.json").write_text(json.dumps(records))
    return ["--model", str(model), "--data", str(tmp_path)]


@pytest.mark.slow
def test_sentences_are_tuned_on_and_judged(sentences, tmp_path, monkeypatch, capsys):
    """Each kind of method, for a few steps of a small model; what was run is not run again."""
    methods = ["zero-shot", "in context", "linear probe", "AdamW", "LoRA, AdamW"]
    methods += ["MeZO", "LoRA, MeZO", "MeZO, answers spread", "FZOO", "FZOO, upper half", "accuracy, upper half"]
    given = [*sentences, "--output", str(tmp_path / "out"), "--methods", *methods]
    given += ["--seeds", "0", "1", "--steps", "9", "--adamw_steps", "3", "--batch", "4"]
    monkeypatch.setattr(sys, "argv", ["snippets.py", *given])
    snippets.main()
    told = capsys.readouterr().out
    rows = [line.split(" | ") for line in told.splitlines() if line.startswith("| ") and "method" not in line]
    assert [row[0].strip("| ") for row in rows] == methods
    assert [row[2] for row in rows] == ["1", *["2"] * 10]
    result = json.loads(next((tmp_path / "out" / "runs").glob("MeZO-[0-9]*-s1.json")).read_text())
    assert len(result["losses"]) == 9 and 0 <= result["accuracy"]["test"] <= 1
    assert len(json.loads(next((tmp_path / "out" / "runs").glob("FZOO-[0-9]*.json")).read_text())["losses"]) == 2
    counted = json.loads(next((tmp_path / "out" / "runs").glob("accuracy-upper_half-*.json")).read_text())["losses"]
    assert [9 * 4 * share for share in counted] == pytest.approx([round(9 * 4 * share) for share in counted], abs=1e-3)
    monkeypatch.setattr(snippets.Study, "run", None)
    snippets.main()
    assert capsys.readouterr().out == told[told.index("# Rated") :]


def test_slope_and_curvature_are_told_by_part(sentences, tmp_path, monkeypatch, capsys):
    given = [*sentences, "--output", str(tmp_path / "out"), "--batch", "2", "--batches", "2", "--directions", "3"]
    monkeypatch.setattr(sys, "argv", ["by_layer.py", *given])
    by_layer.main()
    rows = [line.split(" | ") for line in capsys.readouterr().out.splitlines() if line.startswith("| ")][1:]
    parts = ["all weights", "embeddings", "norms", "layers 0 to 0, matrices", "layers 1 to 1, matrices"]
    assert [row[0].strip("| ") for row in rows] == parts
    found = json.loads((tmp_path / "out" / "by_layer.json").read_text())
    assert list(found) == parts and found["norms"]["signal"]["error"] > 0
    assert (tmp_path / "out" / "by_layer.png").stat().st_size > 0


def test_rounding_is_told_by_eps_before_and_after_training(sentences, tmp_path, monkeypatch, capsys):
    given = [*sentences, "--output", str(tmp_path / "out"), "--batch", "2", "--batches", "1", "--directions", "3"]
    monkeypatch.setattr(sys, "argv", ["rounding.py", *given, "--steps", "9"])
    rounding.main()
    assert "| after 2 steps |" in capsys.readouterr().out
    found = json.loads((tmp_path / "out" / "rounding.json").read_text())
    assert list(found) == ["before training", "after 2 steps"]
    assert (tmp_path / "out" / "rounding.png").stat().st_size > 0
    for state in found.values():
        small, *_ = shares = list(state["shares"]["one side"].values())
        assert state["rms"] > 0 and len(shares) == len(rounding.SIZES) and small > min(shares) >= 0


def test_what_is_not_along_the_exact_slopes():
    assert rounding.share_of_others([2.0, -4.0], [1.0, -2.0]) == pytest.approx(0)
    assert rounding.share_of_others([1.0, 1.0], [1.0, -1.0]) == 1
    assert rounding.share_of_others([3.0, 1.0], [3.0, 0.0]) == pytest.approx(0.1)


def test_a_step_gains_by_slope_and_loses_by_curvature():
    """Of losses a x + b x^2 / 2 along each direction, the same for each batch, the best step gains a^2 / (2 b)."""
    probes = [[curvature.Probe(0.0, 2.0, 8.0)] * 2] * 3
    assert by_layer.gain(curvature.Landscape(probes)) == pytest.approx(2.0**2 / (2 * 8.0))
    flat = [[curvature.Probe(0.0, 2.0, -8.0)] * 2] * 3
    assert by_layer.gain(curvature.Landscape(flat)) is None
