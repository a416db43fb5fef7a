"""Ask a model about pictures.

    python -m llava.ask --model-path M --image a.png "What is shown?" "How many?"
    python -m llava.ask --model-path M --image a.png --chat

Answers go to standard output word by word, everything else to standard error. Each question stands for itself; with
`--chat` each one follows on those before it. Without questions they are read from standard input, a line each.
Several pictures: `--image` several times. An adapter or a lone projector needs its `--model-base`;
`--journal RUN/mezo_journal [--step N]` asks the model of a step of a run.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator
from pathlib import Path

from llava.conversation import get_template
from llava.errors import InputError, command_with
from llava.eval.dialogue import Dialogue
from llava.eval.generation import Answerer, Decoding
from llava.eval.journaled import JournaledModel
from llava.eval.loading_flags import add_loading_flags, load, quantised
from llava.mezo.command_line import Parser
from llava.model.checkpoint_kind import check_checkpoint
from llava.model.own_settings import template_of
from llava.samples.pictures import PictureSettings

EXIT_INTERRUPTED = 130  # as shells count it


def add_model_flags(parser: argparse.ArgumentParser) -> None:
    """The flags that say which model answers, and how."""
    parser.add_argument("--model-path", help="checkpoint folder or hub id; with --journal: the run's base model")
    parser.add_argument("--model-base", help="the model that an adapter or a lone projector was trained from")
    parser.add_argument("--journal", type=Path, metavar="DIR", help="mezo_journal of a run: ask a step of it")
    parser.add_argument("--step", type=int, metavar="N", help="of the journal; default: its last")
    parser.add_argument("--conv-mode", metavar="NAME", help="conversation template; default: the checkpoint's own")
    parser.add_argument("--system", metavar="TEXT", help="in place of the template's system text")
    parser.add_argument("--max-new-tokens", type=int, default=512, help="longest answer (512)")
    parser.add_argument("--temperature", type=float, default=0.0, help="0 takes the likeliest token (0)")
    parser.add_argument("--top-p", type=float, help="with a temperature: draw from the likeliest tokens alone")
    add_loading_flags(parser)


def decoding_of(options: argparse.Namespace) -> Decoding:
    """How answers are drawn, by the flags.

    Raises:
        InputError: a value that is out of range, or has no effect.
    """
    if options.top_p is not None and options.temperature == 0:
        raise InputError(f"--top-p {options.top_p} has no effect without a --temperature above 0")
    return Decoding(options.max_new_tokens, options.temperature, options.top_p)


def load_answerer(options: argparse.Namespace) -> Answerer:
    """The model that the flags name, ready to answer.

    Raises:
        InputError: no such model, or flags that exclude each other.
    """
    pictures = PictureSettings.of(options)
    if options.conv_mode is not None:
        get_template(options.conv_mode)  # one that does not exist is said before anything is loaded
    run = JournaledModel.named_by(options)
    if run is None:
        if options.model_path is None or options.step is not None:
            raise InputError("give --model-path, or --journal with --step N")
        check_checkpoint(options.model_path, options.model_base)
        template = template_of(options.model_path, options.model_base)
        loaded = load(options)
    else:
        step = run.step_of(options.step)
        check_checkpoint(run.path, None)
        template = run.template()
        quantised(options)  # refused with a journal
        loaded = run.load(options.attn_implementation)
        run.go_to(step)
    return Answerer(*loaded, options.conv_mode or template, pictures=pictures)


def _parser() -> argparse.ArgumentParser:
    parser = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("questions", nargs="*", metavar="QUESTION", help="default: lines of standard input")
    parser.add_argument("--image", type=Path, action="append", default=[], metavar="FILE")
    parser.add_argument("--chat", action="store_true", help="questions follow on each other")
    add_model_flags(parser)
    return parser


def _lines() -> Iterator[str]:
    """Questions of standard input; a person is shown where to type."""
    while True:
        if sys.stdin.isatty():
            sys.stderr.write("> ")
            sys.stderr.flush()
        try:
            line = sys.stdin.readline()
        except UnicodeDecodeError as error:
            raise InputError(f"standard input is not UTF-8 text: {error}") from error
        if not line:
            return
        if line.strip():
            yield line.strip()


def _show(piece: str) -> None:
    sys.stdout.write(piece)
    sys.stdout.flush()


@command_with(_parser, version="conv-mode")
def main(argv: list[str] | None = None) -> None:
    """Entry point, see the module's docstring."""
    options = _parser().parse_intermixed_args(argv)
    decoding = decoding_of(options)
    for image in options.image:
        if not image.is_file():
            raise InputError(f"--image {image}: no such file")
    if any(not question.strip() for question in options.questions):
        raise InputError("a QUESTION is empty")
    answerer = load_answerer(options)
    dialogue = Dialogue(answerer, options.image, decoding, options.system)
    try:
        for question in options.questions or _lines():
            if not options.chat:
                dialogue.turns.clear()
            if len(options.questions) > 1:
                sys.stderr.write(f"> {question}\n")
            dialogue.ask(question, _show)
            _show("\n")
    except KeyboardInterrupt:
        sys.exit(EXIT_INTERRUPTED)


if __name__ == "__main__":
    main()
