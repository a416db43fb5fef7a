"""Flags of the commands beside train.py in either spelling."""

from __future__ import annotations

import sys
from importlib.machinery import ModuleSpec

import pytest

from llava.mezo.command_line import Parser


def _parser() -> Parser:
    parser = Parser(prog="x")
    parser.add_argument("--model-path")
    parser.add_argument("--lora_r", type=int)
    parser.add_argument("words", nargs="*")
    return parser


def test_dashes_and_underscores_are_alike() -> None:
    for words in (["--model-path", "a_b", "--lora_r", "3"], ["--model_path", "a_b", "--lora-r=3"]):
        options = _parser().parse_args(words)
        assert (options.model_path, options.lora_r) == ("a_b", 3)


def test_what_is_not_a_flag_of_the_command_stays() -> None:
    options, rest = _parser().parse_known_args(["--other_flag", "a", "--model_path", "m", "--", "--lora-r"])
    assert options.model_path == "m"
    assert "--other_flag" in rest
    assert "--lora-r" in [*options.words, *rest]


def test_errors_name_the_flag_as_the_help_does(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        _parser().parse_args(["--lora-r", "many"])
    assert "argument --lora_r: invalid int value: 'many'" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("module", "called"),
    [
        ("llava.mezo.replay", "python -m llava.mezo.replay"),
        ("llava.mezo.journal.__main__", "python -m llava.mezo.journal"),
        ("pytest.__main__", "file.py"),
    ],
)
def test_it_is_called_as_it_was_started(module: str, called: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys.modules["__main__"], "__spec__", ModuleSpec(module, None))
    monkeypatch.setattr(sys, "argv", ["file.py"])
    assert Parser().prog == called
    assert Parser(prog="mine").prog == "mine"
