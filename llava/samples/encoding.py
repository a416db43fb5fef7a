"""Text with `<image>` marks as token ids that know their place in the text, and labels chosen by place."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

from llava.constants import DEFAULT_IMAGE_TOKEN, IGNORE_INDEX, IMAGE_TOKEN_INDEX
from llava.errors import InputError
from llava.mm_utils import SENTENCEPIECE_SPACE

Span = tuple[int, int]


@dataclass
class Encoded:
    """One sample: token ids, LLaVA-NeXT's labels, and labels of the answers and their end marks alone."""

    input_ids: list[int] = field(default_factory=list)
    labels: list[int] = field(default_factory=list)
    answer_labels: list[int] = field(default_factory=list)

    def append(self, token: int, label: int, answer_label: int) -> None:
        self.input_ids.append(token)
        self.labels.append(label)
        self.answer_labels.append(answer_label)

    def cut(self, length: int) -> Encoded:
        """The first `length` tokens."""
        return Encoded(self.input_ids[:length], self.labels[:length], self.answer_labels[:length])


@dataclass(frozen=True)
class Token:
    """A token id and the first character it stands for."""

    id: int
    start: int


def tokenize(tokenizer: Any, text: str, with_images: bool, special_tokens: bool) -> list[Token]:
    """Tokens of `text`; with images, every `<image>` is one token of id -200 and the pieces between are apart.

    Args:
        tokenizer: must be able to give character offsets.
        with_images: otherwise `<image>` is text like any other.
        special_tokens: let the tokenizer add its own (bos); of those, only the first piece keeps a bos.
    """
    pieces = text.split(DEFAULT_IMAGE_TOKEN) if with_images else [text]
    tokens: list[Token] = []
    start = 0
    has_bos = False
    for number, piece in enumerate(pieces):
        if number:
            tokens.append(Token(IMAGE_TOKEN_INDEX, start - len(DEFAULT_IMAGE_TOKEN)))
        found = _tokenize_piece(tokenizer, piece, start, special_tokens)
        if number == 0:
            has_bos = special_tokens and bool(found) and found[0].id == tokenizer.bos_token_id
        tokens += found[1:] if number and has_bos else found
        start += len(piece) + len(DEFAULT_IMAGE_TOKEN)
    return tokens


def _tokenize_piece(tokenizer: Any, piece: str, start: int, special_tokens: bool) -> list[Token]:
    if not piece and not special_tokens:
        return []
    shift = int(special_tokens and _loses_leading_space(tokenizer, piece))
    piece = SENTENCEPIECE_SPACE * shift + piece
    try:
        # not verbose: samples longer than model_max_length are cut, or refused, after this
        encoding = tokenizer(piece, add_special_tokens=special_tokens, return_offsets_mapping=True, verbose=False)
    except NotImplementedError as error:
        raise InputError(
            f"the tokenizer {type(tokenizer).__name__} gives no character offsets, which choosing the labels needs; "
            f"use the fast tokenizer of the model (a folder with tokenizer.json)"
        ) from error
    return [
        Token(token, start + max(first - shift, 0))
        for token, (first, _) in zip(encoding["input_ids"], encoding["offset_mapping"], strict=True)
    ]


def _loses_leading_space(tokenizer: Any, piece: str) -> bool:
    """Whether a space is lost at the beginning of the piece, see `llava.mm_utils.tokenizer_image_token`."""
    return piece.startswith(" ") and tokenizer(" a")["input_ids"] == tokenizer("a")["input_ids"]


def select(tokens: Iterable[Token], spans: list[Span]) -> Encoded:
    """Sample whose labels are the tokens that begin inside one of the spans of characters."""
    encoded = Encoded()
    for token in tokens:
        inside = any(first <= token.start < end for first, end in spans)
        label = token.id if inside else IGNORE_INDEX
        encoded.append(token.id, label, label)
    return encoded


def token_id(tokenizer: Any, text: str, template: str) -> int:
    """Id of the one token that is exactly `text`; raises `InputError` if the tokenizer has none."""
    ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    if len(ids) != 1 or ids[0] == tokenizer.unk_token_id:
        raise InputError(
            f"the conversation template {template} needs the token {text!r}, which this tokenizer "
            f"({tokenizer.name_or_path or type(tokenizer).__name__}) does not have; choose the --version of the model"
        )
    return ids[0]
