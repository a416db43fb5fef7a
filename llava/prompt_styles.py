"""The separator styles of conversation templates, and what a prompt looks like in each of them."""

from __future__ import annotations

import functools
from collections.abc import Callable
from enum import IntEnum
from typing import Any, Protocol

from llava.errors import InputError


class SeparatorStyle(IntEnum):
    """How the turns of a prompt are marked and separated."""

    SINGLE = 1
    TWO = 2
    MPT = 3
    PLAIN = 4
    CHATML = 5
    LLAMA_2 = 6
    LLAMA_3 = 7
    QWEN = 8
    GEMMA = 9


class Template(Protocol):
    """What rendering reads of a conversation."""

    system: str
    sep_style: SeparatorStyle
    sep: str
    sep2: str | None
    tokenizer_id: str
    tokenizer: Any


Texts = list[tuple[str, str]]


def render(conv: Template, texts: Texts) -> list[str]:
    """The prompt of (role, text) turns: what stands before them, then one part per turn; an empty text is an open turn.

    LLAMA_3 prompts come from the chat template of a tokenizer, in one part.
    """
    renderer = _RENDERERS.get(conv.sep_style)
    if renderer is None:
        known = ", ".join(style.name for style in _RENDERERS)
        raise InputError(f"separator style {conv.sep_style!r} has no rendering; use one of {known}")
    return renderer(conv, texts)


def _render_single(conv: Template, texts: Texts) -> list[str]:
    turns = [f"{role}: {text}{conv.sep}" if text else f"{role}:" for role, text in texts]
    return [conv.system + conv.sep, *turns]


def _render_two(conv: Template, texts: Texts) -> list[str]:
    ends = (conv.sep, conv.sep2 or "")
    turns = [f"{role}: {text}{ends[i % 2]}" if text else f"{role}:" for i, (role, text) in enumerate(texts)]
    return [conv.system + conv.sep, *turns]


def _render_chatml(conv: Template, texts: Texts) -> list[str]:
    head = f"{conv.system}{conv.sep}\n" if conv.system else ""
    return [head, *(f"{role}\n{text}{conv.sep}\n" if text else f"{role}\n" for role, text in texts)]


def _render_mpt(conv: Template, texts: Texts) -> list[str]:
    return [conv.system + conv.sep, *(f"{role}{text}{conv.sep}" if text else role for role, text in texts)]


def _render_gemma(conv: Template, texts: Texts) -> list[str]:
    return ["", *(f"{role}{text}{conv.sep}" if text else role for role, text in texts)]


def _render_plain(conv: Template, texts: Texts) -> list[str]:
    ends = (conv.sep, conv.sep2 or "")
    return [conv.system, *(text + ends[i % 2] if text else "" for i, (_, text) in enumerate(texts))]


def _render_llama_2(conv: Template, texts: Texts) -> list[str]:
    turns = []
    for i, (_, text) in enumerate(texts):
        if not text:
            turns.append("")
        elif i % 2:
            turns.append(f" {text} {conv.sep2 or ''}")
        else:
            intro = f"<<SYS>>\n{conv.system}\n<</SYS>>\n\n" if conv.system and i == 0 else ""
            turns.append(f"{conv.sep}[INST] {intro}{text} [/INST]")
    for i, turn in enumerate(turns):  # the tokenizer adds the first start mark itself
        turns[i] = turn.lstrip(conv.sep) if conv.sep else turn
        if turns[i]:
            break
    return ["", *turns]


def _render_llama_3(conv: Template, texts: Texts) -> list[str]:
    tokenizer = conv.tokenizer if conv.tokenizer is not None else _load_tokenizer(conv.tokenizer_id)
    chat = [{"role": "system", "content": conv.system}]
    chat += [{"role": role, "content": text} for role, text in texts if text]
    return [tokenizer.apply_chat_template(chat, tokenize=False, add_generation_prompt=True)]


@functools.lru_cache(maxsize=4)
def _load_tokenizer(tokenizer_id: str) -> Any:
    from transformers import AutoTokenizer

    try:
        return AutoTokenizer.from_pretrained(tokenizer_id)
    except (OSError, ValueError) as error:
        raise InputError(
            f"the template needs the tokenizer {tokenizer_id!r}, which could not be loaded; set the template's "
            f"`tokenizer` to a loaded one or `tokenizer_id` to a local folder"
        ) from error


_RENDERERS: dict[SeparatorStyle, Callable[[Template, Texts], list[str]]] = {
    SeparatorStyle.SINGLE: _render_single,
    SeparatorStyle.TWO: _render_two,
    SeparatorStyle.MPT: _render_mpt,
    SeparatorStyle.PLAIN: _render_plain,
    SeparatorStyle.CHATML: _render_chatml,
    SeparatorStyle.LLAMA_2: _render_llama_2,
    SeparatorStyle.LLAMA_3: _render_llama_3,
    SeparatorStyle.GEMMA: _render_gemma,
}
