"""A conversation about pictures: what was said, and the next answer word by word."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from transformers import TextStreamer

from llava.constants import DEFAULT_IMAGE_TOKEN
from llava.errors import InputError
from llava.eval.generation import Answerer, Decoding, Question
from llava.samples.stored import StoredPicture
from llava.samples.turns import check_text


class Dialogue:
    """Turns about pictures that are there from the first one on.

    Args:
        images: files; the first question has a mark for each, in front unless it places `<image>` itself.
        system: replaces the template's system text.
    """

    def __init__(
        self,
        answerer: Answerer,
        images: Sequence[Path] = (),
        decoding: Decoding | None = None,
        system: str | None = None,
    ) -> None:
        self.answerer = answerer
        self.images: list[Path | StoredPicture] = list(images)
        self.decoding = decoding
        self.system = system
        self.turns: list[tuple[str, str]] = []

    def ask(self, text: str, show: Callable[[str], None] | None = None) -> str:
        """The answer to the next question; `show` gets its words as they come.

        Raises:
            InputError: the question is empty or its marks do not match the pictures, a picture cannot be read, or all
                that was said is too long for the model. The conversation is then as it was before.
        """
        if not text.strip():
            raise InputError("the question is empty")
        check_text(text, "the question")
        turns = [*self.turns, (self._marked(text), None)]
        streamer = None if show is None else Words(self.answerer.tokenizer, show)
        question = Question("the question", turns, self.images, self.system)
        [answer] = self.answerer.answer([question], self.decoding, streamer)
        self.tell(text, answer)
        return answer

    def tell(self, text: str, answer: str) -> None:
        """Note a question and its answer as said."""
        self.turns.append((self._marked(text), answer))

    def _marked(self, text: str) -> str:
        if self.turns or DEFAULT_IMAGE_TOKEN in text:
            return text
        return f"{DEFAULT_IMAGE_TOKEN}\n" * len(self.images) + text


class Words(TextStreamer):
    """Hands the words of an answer on as they are complete, without the prompt and special tokens."""

    def __init__(self, tokenizer: Any, show: Callable[[str], None]) -> None:
        super().__init__(tokenizer, skip_prompt=True, skip_special_tokens=True)
        self._show = show
        self._begun = False

    def on_finalized_text(self, text: str, stream_end: bool = False) -> None:
        """Called by the library with each new piece; space before the first word is left out."""
        text = text if self._begun else text.lstrip()
        if text:
            self._begun = True
            self._show(text)
