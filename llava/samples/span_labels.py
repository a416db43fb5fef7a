"""Labels of templates that are tokenised as one text (v1, Llama 2, MPT, Gemma, plain, v0): by place in the prompt.

The answers and their end marks are labelled, nothing else. Text-only samples are later cut to the tokenizer's
`model_max_length`; samples with images are cut by the collator, with their images.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any

from llava.constants import DEFAULT_IMAGE_TOKEN, IGNORE_INDEX
from llava.conversation import Conversation, SeparatorStyle
from llava.errors import InputError
from llava.samples.encoding import Encoded, Span, Token, select, tokenize
from llava.samples.turns import ANSWER, HUMAN, Turn, split_system

logger = logging.getLogger(__name__)

# What of an answer's part of the prompt stands before the answer: not to be learned.
_ANSWER_HEADER = {
    SeparatorStyle.TWO: "{role}:",
    SeparatorStyle.LLAMA_2: "",
    SeparatorStyle.MPT: "{role}",
    SeparatorStyle.GEMMA: "{role}",
}


def encode_rounds(
    turns: Sequence[Turn], tokenizer: Any, with_images: bool, template: Conversation, system: str | None = None
) -> Encoded:
    """A conversation of alternating turns in the template's form (Llama 2, MPT, Gemma)."""
    conversation = _fill(turns, template, system)
    pieces = conversation.pieces()
    header = _ANSWER_HEADER[template.sep_style].format(role=template.roles[1])
    spans: list[Span] = []
    start = len(pieces[0])
    for number, piece in enumerate(pieces[1:]):
        if number % 2:
            spans.append((start + len(header), start + len(piece)))
        start += len(piece)
    return select(_tokens("".join(pieces), tokenizer, with_images), spans)


def encode_v1(
    turns: Sequence[Turn], tokenizer: Any, with_images: bool, template: Conversation, system: str | None = None
) -> Encoded:
    """The v1 (Vicuna) form: a label for each answer with its `</s>`.

    As in LLaVA-NeXT, a sample that is not made of complete rounds of question and answer (an empty answer, a last
    question without one, a separator inside the text) is ignored as a whole, with a warning, unless
    `model_max_length` cuts it before that place.
    """
    prompt = _fill(turns, template, system).get_prompt()
    spans, end = _v1_spans(prompt, template)
    tokens = _tokens(prompt, tokenizer, with_images)
    encoded = select(tokens, spans)
    covered = sum(token.start < end for token in tokens)
    if covered < min(len(tokens), tokenizer.model_max_length):
        logger.warning(
            "a v1 sample is ignored: it is not made of complete rounds of question and answer: %.120r", prompt
        )
        encoded.labels = encoded.answer_labels = [IGNORE_INDEX] * len(tokens)
    return encoded


def _v1_spans(prompt: str, template: Conversation) -> tuple[list[Span], int]:
    """Spans of the answers of the complete rounds at the beginning, and where these rounds end."""
    divider = f"{template.sep}{template.roles[1]}: "
    end_mark = template.sep2 or ""
    spans: list[Span] = []
    start = 0
    for text in prompt.split(end_mark):
        parts = text.split(divider)
        if len(parts) != 2:
            break
        end = start + len(text) + len(end_mark)
        spans.append((start + len(parts[0]) + len(divider) - 1, end))  # the space before the answer belongs to it
        start = end
    return spans, start


def encode_plain(
    turns: Sequence[Turn], tokenizer: Any, with_images: bool, template: Conversation, system: str | None = None
) -> Encoded:
    """Caption form of projector pre-training: the image, then the second turn's text and a newline."""
    own_system, turns = split_system(turns)
    if own_system is not None or system is not None:
        raise InputError("the conversation template plain has no system text; take out the record's system turn")
    if len(turns) != 2 or turns[1]["from"] != ANSWER or DEFAULT_IMAGE_TOKEN not in turns[0]["value"]:
        raise InputError(
            "the conversation template plain needs exactly two turns, a human one with <image> and an answer; "
            "choose another --version for conversations"
        )
    prompt = f"{DEFAULT_IMAGE_TOKEN}{turns[1]['value']}{template.sep}"
    return select(tokenize(tokenizer, prompt, True, special_tokens=True), [(len(DEFAULT_IMAGE_TOKEN), len(prompt))])


def encode_v0(
    turns: Sequence[Turn], tokenizer: Any, with_images: bool, template: Conversation, system: str | None = None
) -> Encoded:
    """The first form of LLaVA: a header, `### Human: ...` and `### Assistant: ...` lines, and a last `### `."""
    own_system, turns = split_system(turns)
    names = {HUMAN: template.roles[0], ANSWER: template.roles[1]}
    prompt = next(text for text in (system, own_system, template.system) if text is not None) + "\n\n"
    spans: list[Span] = []
    for turn in turns:
        prompt += f"### {names.get(turn['from'], turn['from'])}: "
        start = len(prompt)
        prompt += turn["value"] + "\n"
        if turn["from"] == ANSWER:
            spans.append((start - 1, len(prompt)))  # the space before the answer belongs to it
    prompt += "### "
    return select(_tokens(prompt, tokenizer, with_images), spans)


def _fill(turns: Sequence[Turn], template: Conversation, system: str | None) -> Conversation:
    """The template with the record's turns, which must alternate."""
    own_system, turns = split_system(turns)
    conversation = template.copy()
    conversation.messages = []
    given = own_system if system is None else system
    if given is not None:
        conversation.system = given
    for number, turn in enumerate(turns):
        expected = ANSWER if number % 2 else HUMAN
        if turn["from"] != expected:
            raise InputError(
                f"turn {number} is from {turn['from']!r}, but this conversation template needs turns that alternate "
                f"between human and gpt"
            )
        conversation.append_message(conversation.roles[number % 2], turn["value"])
    return conversation


def _tokens(prompt: str, tokenizer: Any, with_images: bool) -> list[Token]:
    """Tokens of the prompt; a leading bos stands before the text and is never labelled."""
    tokens = tokenize(tokenizer, prompt, with_images, special_tokens=True)
    if tokens and tokens[0].id == tokenizer.bos_token_id:
        tokens[0] = Token(tokens[0].id, -1)
    return tokens
