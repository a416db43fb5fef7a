"""A page to ask a model about pictures, in a browser.

    pip install gradio
    python -m llava.serve --model-path M [--host 127.0.0.1] [--port 7860]

The flags that name the model and how it answers are those of `llava.ask`. New pictures begin a new conversation. One
answer is made at a time; others wait. Nothing is sent anywhere, and the page loads nothing from elsewhere.
"""

from __future__ import annotations

import argparse
import importlib.util
import os
import queue
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from llava.ask import add_model_flags, decoding_of, load_answerer
from llava.errors import InputError, command_with
from llava.eval.dialogue import Dialogue
from llava.mezo.command_line import Parser

LARGEST_PORT = 65535
Message = Mapping[str, Any]
"""Gradio's: a new one has `text` and `files` (paths); one of the history `role` and `content`, a list of parts."""


def resumed(dialogue: Callable[[list[Path]], Dialogue], history: Sequence[Message], files: Sequence[str]) -> Dialogue:
    """The conversation that a page shows, as far as it belongs to the pictures that are asked about now.

    Args:
        dialogue: makes an empty one about pictures.
        history: what the page shows.
        files: pictures of the new message.
    """
    if files:
        return dialogue([Path(file) for file in files])
    said = [(one["role"], *_parts(one["content"])) for one in history]
    begin = max((place for place, (_, _, files) in enumerate(said) if files), default=0)
    images = [Path(file) for _, _, files in said[begin:] for file in files]
    found = dialogue(images)
    asked: str | None = None
    for role, text, _ in said[begin:]:
        if role == "assistant" and asked is not None:
            found.tell(asked, text)
            asked = None
        elif role == "user" and text:
            asked = text
    return found


def _parts(content: Any) -> tuple[str, list[str]]:
    """The text and the files of a message of the history."""
    parts = content if isinstance(content, list) else [content]
    texts = [part if isinstance(part, str) else part["text"] for part in parts if _is_text(part)]
    return "".join(texts), [part["file"]["path"] for part in parts if not _is_text(part)]


def _is_text(part: Any) -> bool:
    return isinstance(part, str) or "text" in part


def answer(dialogue: Dialogue, text: str) -> Iterator[str]:
    """The answer as far as it is made, again and again until it is whole. Closed before, it stops the model.

    Raises:
        InputError: as `Dialogue.ask`.
    """
    pieces: queue.SimpleQueue[str | BaseException | None] = queue.SimpleQueue()
    stopped = threading.Event()

    def show(piece: str) -> None:
        if stopped.is_set():
            raise InterruptedError
        pieces.put(piece)

    def work() -> None:
        try:
            dialogue.ask(text, show)
            pieces.put(None)
        except BaseException as error:  # raised where the answer is waited for
            pieces.put(error)

    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    so_far = ""
    try:
        while (piece := pieces.get()) is not None:
            if isinstance(piece, BaseException):
                raise piece
            so_far += piece
            yield so_far
    finally:
        stopped.set()
        thread.join()


def page(dialogue: Callable[[list[Path]], Dialogue], title: str) -> Any:
    """The Gradio app."""
    import gradio

    def respond(message: Message, history: Sequence[Message]) -> Iterator[str]:
        try:
            yield from answer(resumed(dialogue, history, message["files"]), message["text"])
        except InputError as error:
            raise gradio.Error(str(error)) from error

    box = gradio.MultimodalTextbox(
        placeholder="A question; pictures with the button or by pasting", file_types=["image"], file_count="multiple"
    )
    return gradio.ChatInterface(respond, multimodal=True, textbox=box, title=title, flagging_mode="never")


def _parser() -> argparse.ArgumentParser:
    parser = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_model_flags(parser)
    parser.add_argument("--host", default="127.0.0.1", help="0.0.0.0: also for other machines, without a password")
    parser.add_argument("--port", type=int, default=7860)
    return parser


@command_with(_parser, version="conv-mode")
def main(argv: list[str] | None = None) -> None:
    """Entry point, see the module's docstring."""
    options = _parser().parse_args(argv)
    decoding = decoding_of(options)
    if not 1 <= options.port <= LARGEST_PORT:
        raise InputError(f"--port {options.port} must be in 1..{LARGEST_PORT}")
    if importlib.util.find_spec("gradio") is None:
        raise InputError("the page is made with gradio: pip install gradio")
    os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"
    answerer = load_answerer(options)

    def dialogue(images: list[Path]) -> Dialogue:
        return Dialogue(answerer, images, decoding, options.system)

    import gradio

    try:
        theme = gradio.themes.Default(font=["system-ui", "sans-serif"], font_mono=["monospace"])
        page(dialogue, str(options.model_path or options.journal)).launch(
            server_name=options.host, server_port=options.port, share=False, theme=theme
        )
    except OSError as error:
        raise InputError(f"--host {options.host} --port {options.port}: {error}") from error


if __name__ == "__main__":
    main()
