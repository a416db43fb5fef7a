"""Any flag with any value: what can be used, or one line that names the flag, before a model is loaded.

EXAMPLES=10000 in the environment tries so many command lines of each kind, in place of a few.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import os
import re
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
import transformers
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import llava.train.train as command
from llava.train.flags.arguments import DataArguments, ModelArguments, TrainingArguments

ACTIONS = {
    action.dest: action
    for action in transformers.HfArgumentParser((ModelArguments, DataArguments, TrainingArguments))._actions
    if action.dest != "help"
}
MANY = settings(
    max_examples=int(os.environ.get("EXAMPLES", "20")),
    deadline=None,
    derandomize="EXAMPLES" not in os.environ,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)

WHOLE = st.sampled_from(["-1", "0", "1", "2", "3", "64", "5000", str(2**31), str(2**63), str(10**30)])
REAL = st.sampled_from(
    ["-1.0", "-0.0", "0", "1e-300", "1e-3", "0.5", "0.999", "1", "2.5", "1e30", "inf", "-inf", "nan"]
)
WORDS = st.sampled_from(
    [
        "",
        " ",
        "none",
        "no",
        "all",
        "auto",
        "True",
        "False",
        "linear",
        "cosine",
        "steps",
        "epoch",
        "spsa",
        "lowrank",
        "rademacher",
        "adamw_torch",
        "adafactor",
        "sgd",
        "inductor",
        "full_shard",
        "wandb",
        "x.json",
        "a/b",
        ".",
        "/proc/1/none",
        "/dev/null",
        "~",
        "0:4,0.3:20",
        "(1x1),...,(6x6)",
        "[[384, 384]]",
        "anyres_max_9",
        "a\nb",
        "mm_language_model",
        "mm_mlp_adapter,mm_vision_tower",
        "qwen_1_5",
        "plain",
        "x" * 5000,
        '{"use_reentrant": true}',
        '{"min_lr": 1e-6}',
        '{"num_cycles": "x"}',
        "{}",
        "{bad",
        "[1]",
        '{"a": {"b": []}}',
    ]
)
FOLDERS = st.sampled_from(["out", "inner/out", "", "/dev/null", "/dev/null/out", "/proc/1/none", "x" * 5000])
TEXT = st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), max_size=20)


def values(action: argparse.Action) -> st.SearchStrategy[list[str]]:
    """Words behind a flag: of its type, or of any other."""
    if action.dest == "output_dir":
        return FOLDERS.map(lambda word: [word])
    right = [WORDS, WORDS, TEXT]
    if action.choices:
        right = [st.sampled_from([str(choice) for choice in action.choices])]
    elif action.const is True:
        right = [st.sampled_from(["True", "False"])]
    elif action.type is int:
        right = [WHOLE, st.integers(0, 9).map(str), st.integers().map(str)]
    elif action.type is float:
        right = [REAL, st.floats(0, 1).map(str), st.floats().map(str)]
    word = st.one_of(*right, *right, *right, *right, st.one_of(WHOLE, REAL, WORDS, TEXT))
    one = word.map(lambda word: [word])
    return st.one_of(one, one, one, st.lists(word, max_size=2)) if action.nargs else one


@st.composite
def flags(draw: st.DrawFn, least: int, most: int) -> dict[str, list[str]]:
    """Some flags and the words behind them; those of MeZO as often as the others."""
    ours = sorted(name for name in ACTIONS if name.startswith("zo_"))
    name = st.one_of(st.sampled_from(sorted(ACTIONS)), st.sampled_from(sorted(ACTIONS)), st.sampled_from(ours))
    names = draw(st.lists(name, min_size=least, max_size=most, unique=True))
    return {name: draw(values(ACTIONS[name])) for name in names}


class ModelIsLoaded(Exception):
    """As far as these tests go."""


@pytest.fixture()
def refusal(run_flags: Callable[..., list[str]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable]:
    """The one line that a command line is refused with, or None."""

    def load(*args: object) -> None:
        raise ModelIsLoaded

    def refusal(mode: str, given: dict[str, list[str]]) -> str | None:
        words = run_flags(output_dir="out", trainer_mode=mode, bf16=None)
        for name, value in given.items():
            words += [f"--{name}={value[0]}"] if len(value) == 1 else [f"--{name}", *value]
        said = io.StringIO()
        before = dict(os.environ)
        try:
            with contextlib.redirect_stderr(said):
                command.train(argv=words)
        except ModelIsLoaded:
            return None
        except SystemExit as stop:
            assert stop.code == 2
            errors = [line for line in said.getvalue().splitlines() if line.startswith("error: ")]
            assert errors == said.getvalue().splitlines()[-1:], said.getvalue()
            return errors[0]
        finally:
            os.environ.clear()
            os.environ.update(before)
            torch.use_deterministic_algorithms(False)
        raise AssertionError("neither refused nor started")

    monkeypatch.setattr(command, "build", load)
    monkeypatch.setattr("llava.model.checkpoint_kind._unreachable", lambda *args: OSError("no network in a test"))
    monkeypatch.chdir(tmp_path)
    yield refusal
    assert {path.name for path in tmp_path.iterdir()} <= {"out", "inner", "trainer_output"}


def named(given: dict[str, list[str]], line: str) -> bool:
    """Whether one of the flags stands in the line."""
    return any(re.search(rf"--{name}\b", line) for name in given)


@pytest.mark.slow
@pytest.mark.parametrize("mode", ["zo", "regular"])
@MANY
@given(given=flags(1, 1))
def test_one_flag_is_used_or_refused_by_name(mode: str, given: dict[str, list[str]], refusal: Callable) -> None:
    line = refusal(mode, given)
    assert line is None or named(given, line), line


@pytest.mark.slow
@pytest.mark.parametrize("mode", ["zo", "regular"])
@MANY
@given(given=flags(2, 3))
def test_flags_together_are_used_or_refused_by_name(mode: str, given: dict[str, list[str]], refusal: Callable) -> None:
    line = refusal(mode, given)
    assert line is None or named(given, line), line
