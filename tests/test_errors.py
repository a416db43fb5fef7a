"""Errors of a command name flags that it has, also where training's code raises them."""

from __future__ import annotations

import ast
import importlib
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import transformers

from llava import ask, serve
from llava.check import command as check
from llava.data import prepare
from llava.errors import command, in_own_flags
from llava.eval import accuracy, model_vqa, probe
from llava.mezo.errors import JournalError
from llava.mezo.journal import replay
from llava.mezo.journal.files import Journal
from llava.model import convert, merge
from llava.train import advise, plan
from llava.train.flags.arguments import DataArguments, ModelArguments, TrainingArguments
from llava.train.sweep import __main__ as sweep

ROOT = Path(__file__).parents[1]
COMMANDS = (ask, serve, check, prepare, accuracy, model_vqa, probe, convert, merge, plan)
WITH_FLAGS_OF_TRAINING = (advise, sweep)
FLAG = re.compile(r"(?<![\w-])--([A-Za-z][\w-]*)")
OF_OTHERS = {"--no-deps", "--no-binary", "--shots-data", "--max_split_size_mb"}
"""Of pip, and of what shared code is called for by one command alone."""


def known(module: object) -> set[str]:
    return set(module._parser()._option_string_actions)  # type: ignore[attr-defined]


def said(file: Path) -> Iterator[str]:
    """Literal texts of errors and warnings in a file, without what stands in backticks."""
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        raised = isinstance(node, ast.Raise)
        logged = isinstance(node, ast.Call) and getattr(node.func, "attr", "") == "warning"
        if raised or logged:
            parts = [n.value for n in ast.walk(node) if isinstance(n, ast.Constant) and isinstance(n.value, str)]
            yield re.sub(r"`[^`]*`", "", "\0".join(parts))


@pytest.mark.parametrize("module", (*COMMANDS, *WITH_FLAGS_OF_TRAINING), ids=lambda module: module.__name__)
def test_a_command_is_called_as_it_was_started(module: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys.modules["__main__"], "__spec__", ModuleSpec(module.__name__, None))
    assert module._parser().prog in (
        f"python -m {module.__name__.removesuffix('.__main__')}",
        "python -m llava.data.check",
    )


@pytest.mark.parametrize("module", COMMANDS, ids=lambda module: module.__name__)
def test_a_command_s_own_errors(module: object) -> None:
    named = {f"--{name}" for text in said(Path(str(module.__file__))) for name in FLAG.findall(text)}  # type: ignore[attr-defined]
    assert named <= known(module)


def test_every_flag_that_is_advised_exists() -> None:
    """In some command: `in_own_flags` sees to it that it is the running one's."""
    parser = transformers.HfArgumentParser((ModelArguments, DataArguments, TrainingArguments))  # type: ignore[arg-type]
    flags = set(parser._option_string_actions) | OF_OTHERS
    for module in (*COMMANDS, *WITH_FLAGS_OF_TRAINING):
        flags |= known(module)
    journal = importlib.import_module("llava.mezo.journal.replay")
    flags |= set(re.findall(r'add_argument\("(--[\w-]+)"', Path(str(journal.__file__)).read_text()))
    for file in (ROOT / "llava").rglob("*.py"):
        own = set(re.findall(r'"(--[\w-]+)"', file.read_text())) if "argparse" in file.read_text() else set()
        for text in said(file):
            missing = {f"--{name}" for name in FLAG.findall(text) if not name.endswith("_")} - flags - own
            assert not missing, f"{file}: {missing}"


def test_commands_that_are_advised_keep_their_flags() -> None:
    """In backticks, where `in_own_flags` leaves them alone."""
    for file in (ROOT / "llava").rglob("*.py"):
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if isinstance(node, ast.JoinedStr):
                text = "".join(str(part.value) if isinstance(part, ast.Constant) else "X" for part in node.values)
                assert not re.search(r"(?<![`\n])python -m llava[\w.]* --", text), f"{file}: {text}"


def test_flags_of_training_in_a_command_s_words() -> None:
    options, names = {"--conv-mode", "--image-window", "--data", "--top_p"}, {"version": "conv-mode"}
    text = "--version x, --image_window 3, --data_path y, --top-p=1, `python -m a --version v`, a--b"
    assert in_own_flags(text, options, names) == (
        "--conv-mode x, --image-window 3, data_path y, --top_p=1, `python -m a --version v`, a--b"
    )


CASES = {
    "ask": (ask.main, ["--model-path", "none", "--conv-mode", "odd", "?"], "--conv-mode"),
    "ask window": (ask.main, ["--model-path", "none", "--image-window", "3", "1", "?"], "--image-window"),
    "accuracy": (accuracy.main, ["--model-path", "m", "--output", "a.jsonl", "--data", "none.json"], "--data"),
    "model_vqa": (model_vqa.main, ["--question-file", "none.json"], "--question-file"),
    "probe": (
        probe.main,
        ["--model-path", "m", "--output", "a.json", "--train-data", "none.json", "--data", "none.json"],
        "--train-data",
    ),
    "merge": (merge.main, ["--adapter", "./none", "--base", "b", "--output", "none"], "--adapter"),
    "check": (check.main, ["none.json", "--image-aspect-ratio", "odd"], "--image-aspect-ratio|--image_aspect_ratio"),
}


@pytest.mark.parametrize("case", CASES)
def test_what_is_shared_blames_the_command_s_flag(case: str, refused: Callable[..., str]) -> None:
    main, words, flag = CASES[case]
    error = refused(main, words)
    assert re.search(flag, error), error
    assert error.count("error: ") == 1
    module = {one.__name__.split(".")[-1]: one for one in COMMANDS}[{"check": "command"}.get(case, case.split()[0])]
    assert {f"--{name}" for name in FLAG.findall(error)} <= known(module)


@pytest.mark.parametrize("error", [OSError(28, "No space left"), ValueError("no space (os error 28)")], ids=repr)
def test_a_full_disk_is_one_line_of_any_command(error: Exception, refused: Callable[..., str]) -> None:
    @command
    def main(argv: list[str]) -> None:
        raise error

    assert "error: the disk is full" in refused(main, [])


def test_other_errors_stay_what_they_are() -> None:
    @command
    def main() -> None:
        raise OSError(5, "Input/output error")

    with pytest.raises(OSError, match="Input/output"):
        main()


def test_a_failed_replay_names_its_flag_and_has_an_exit_code(tmp_path: Path) -> None:
    words = ["--model-path", "nowhere", "--journal", str(tmp_path), "--output-dir", str(tmp_path / "out")]
    done = subprocess.run([sys.executable, "-m", "llava.mezo.replay", *words], capture_output=True, text=True)
    assert done.returncode == 2 and done.stderr.startswith("error: ") and str(tmp_path) in done.stderr


@pytest.mark.parametrize("model", ["nowhere", "/nowhere", "no/where"])
def test_a_base_that_is_not_there_is_named(model: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def fetch(name: str) -> str:
        raise OSError("no network\nand more")

    monkeypatch.setattr("huggingface_hub.snapshot_download", fetch)
    monkeypatch.setattr(Journal, "read", lambda folder: SimpleNamespace(records=[]))
    options = SimpleNamespace(model_path=model, journal=tmp_path, step=None, every=None, output_dir=tmp_path / "out")
    with pytest.raises(JournalError, match=rf"--model-path {model}: no such folder"):
        replay.run(options)
