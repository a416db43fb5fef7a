"""Labels of chat templates with marker tokens (Qwen, Llama 3): every turn is tokenised alone.

LLaVA-NeXT's labels cover the assistant's turns, header included, and every marker token anywhere in the sample, also
in the system and user turns. The labels of the answers alone cover the answer's text and its end mark.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from llava.chat_formats import LLAMA_3, QWEN, QWEN_SYSTEM, ChatFormat
from llava.constants import DEFAULT_IMAGE_TOKEN, IGNORE_INDEX, IMAGE_TOKEN_INDEX
from llava.conversation import Conversation
from llava.samples.encoding import Encoded, token_id, tokenize
from llava.samples.turns import ANSWER, HUMAN, SYSTEM, Turn, split_system

_ROLE_NAMES = {HUMAN: "user", ANSWER: "assistant"}


def encode_qwen(
    turns: Sequence[Turn], tokenizer: Any, with_images: bool, template: Conversation, system: str | None = None
) -> Encoded:
    """Qwen's chat form. The system text is `system`, else a leading system turn, else Qwen 1.5's default.

    LLaVA-NeXT trains `qwen_2_5` with the default of Qwen 1.5 too; pass `template_system_text(template)` as `system`
    to train with the text that the template asks with.
    """
    return _encode(QWEN, turns, tokenizer, with_images, system, QWEN_SYSTEM)


def encode_llama_3(
    turns: Sequence[Turn], tokenizer: Any, with_images: bool, template: Conversation, system: str | None = None
) -> Encoded:
    """Llama 3's chat form. The system text is `system`, else a leading system turn, else the template's."""
    return _encode(LLAMA_3, turns, tokenizer, with_images, system, template.system)


def template_system_text(template: Conversation) -> str:
    """The system text that a template asks with, without Qwen's marker in front."""
    return template.system.removeprefix(QWEN.opening(SYSTEM))


def _encode(
    chat: ChatFormat, turns: Sequence[Turn], tokenizer: Any, with_images: bool, system: str | None, default: str
) -> Encoded:
    own_system, turns = split_system(turns)
    if system is None:
        system = default if own_system is None else own_system
    everywhere = {token_id(tokenizer, text, chat.name) for text in chat.labelled_everywhere}
    image_label = _image_label(tokenizer)
    encoded = Encoded()
    if chat.begin:
        begin = token_id(tokenizer, chat.begin, chat.name)
        encoded.append(begin, begin, IGNORE_INDEX)
    for turn in [{"from": SYSTEM, "value": system}, *turns]:
        role = _ROLE_NAMES.get(turn["from"], turn["from"])
        text = turn["value"].strip() if chat.strip else turn["value"]
        header = chat.opening(role)
        tokens = tokenize(tokenizer, header + text + chat.end_mark + chat.after, with_images, special_tokens=False)
        answer_end = len(header) + len(text) + len(chat.end_mark)
        for token in tokens:
            label = image_label if token.id == IMAGE_TOKEN_INDEX else token.id
            in_answer = role == "assistant" and len(header) <= token.start < answer_end
            labelled = token.id in everywhere or role not in ("system", "user")
            encoded.append(token.id, label if labelled else IGNORE_INDEX, label if in_answer else IGNORE_INDEX)
    return encoded


def _image_label(tokenizer: Any) -> int:
    """The id `<image>` has or would get: what LLaVA-NeXT leaves as its label in an answer, until it is spliced out."""
    known = tokenizer.get_added_vocab().get(DEFAULT_IMAGE_TOKEN)
    return len(tokenizer) if known is None else known
