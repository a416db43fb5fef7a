"""From the turns of records to token ids and labels, by conversation template.

`preprocess(sources, tokenizer, has_image)` chooses the rule by the separator style of the template: the one passed
as `template`, else `llava.conversation.default_conversation`. A source is the list of turns of one record.
Labels are by default LLaVA-NeXT's; with `train_on_answers_only` the answers and their end marks alone.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch

from llava import conversation as conversation_lib
from llava.conversation import Conversation, SeparatorStyle, conv_templates
from llava.errors import InputError, naming
from llava.samples.chat_labels import encode_llama_3, encode_qwen
from llava.samples.encoding import Encoded
from llava.samples.settings import SampleSettings
from llava.samples.span_labels import encode_plain, encode_rounds, encode_v0, encode_v1
from llava.samples.turns import Turn, place_image_marks, record_turns

Sources = Sequence[Sequence[dict[str, Any]]]
Batch = dict[str, Any]
Encoder = Callable[[Sequence[Turn], Any, bool, Conversation, str | None], Encoded]

ENCODERS: dict[SeparatorStyle, Encoder] = {
    SeparatorStyle.CHATML: encode_qwen,
    SeparatorStyle.LLAMA_3: encode_llama_3,
    SeparatorStyle.TWO: encode_v1,
    SeparatorStyle.PLAIN: encode_plain,
    SeparatorStyle.LLAMA_2: encode_rounds,
    SeparatorStyle.MPT: encode_rounds,
    SeparatorStyle.GEMMA: encode_rounds,
    SeparatorStyle.SINGLE: encode_v0,
}
# LLaVA-NeXT lets the tokenizer cut text-only samples of these; everything else is cut by the collator.
CUT_WITHOUT_IMAGES = frozenset(
    {SeparatorStyle.TWO, SeparatorStyle.LLAMA_2, SeparatorStyle.MPT, SeparatorStyle.GEMMA, SeparatorStyle.SINGLE}
)


def encode(
    turns: Sequence[Turn], tokenizer: Any, has_image: bool, template: Conversation, system: str | None = None
) -> Encoded:
    """Ids and both kinds of labels of one sample, before any cut."""
    encoder = ENCODERS.get(template.sep_style)
    if encoder is None:
        known = ", ".join(style.name for style in ENCODERS)
        raise InputError(f"no labels are defined for separator style {template.sep_style!r}; use one of {known}")
    return encoder(turns, tokenizer, has_image, template, system)


def cut_length(tokenizer: Any, has_image: bool, template: Conversation) -> int | None:
    """Where preprocessing cuts a sample: at `model_max_length` for text-only samples of some templates, else not."""
    return tokenizer.model_max_length if not has_image and template.sep_style in CUT_WITHOUT_IMAGES else None


def preprocess(
    sources: Sources,
    tokenizer: Any,
    has_image: bool = False,
    template: Conversation | None = None,
    train_on_answers_only: bool = False,
    system_message: str | None = None,
) -> Batch:
    """Ids and labels of conversations.

    Args:
        sources: one list of turns (`from`/`value` or `role`/`content`) per sample; not changed.
        tokenizer: not changed either; `<image>` need not be one of its tokens.
        has_image: `<image>` stands for an image and becomes -200; otherwise it is text.
        template: default `llava.conversation.default_conversation`.
        train_on_answers_only: label the answers' text and end marks alone.
        system_message: replaces the template's and the records' system text.

    Returns:
        `input_ids` and `labels`: long tensors [n, length] when all samples are equally long, else lists of 1-d ones.

    Raises:
        InputError: turns that the template cannot hold, or a tokenizer that lacks its marker tokens.
    """
    template = conversation_lib.default_conversation if template is None else template
    limit = cut_length(tokenizer, has_image, template)
    ids, labels = [], []
    for number, source in enumerate(sources):
        with naming(f"conversation {number}"):
            turns = record_turns({"conversations": list(source)})
            encoded = encode(turns, tokenizer, has_image, template, system_message)
        encoded = encoded if limit is None else encoded.cut(limit)
        ids.append(torch.tensor(encoded.input_ids, dtype=torch.long))
        chosen = encoded.answer_labels if train_on_answers_only else encoded.labels
        labels.append(torch.tensor(chosen, dtype=torch.long))
    return {"input_ids": _stack(ids), "labels": _stack(labels)}


def preprocess_multimodal(sources: Sources, data_args: Any) -> list[list[Turn]] | Sources:
    """Copies of the conversations with their `<image>` marks put where training expects them.

    Without `data_args.is_multimodal` the conversations come back as they are.
    """
    settings = SampleSettings.of(data_args)
    if not settings.is_multimodal:
        return sources
    wrap = settings.mm_use_im_start_end
    return [place_image_marks(record_turns({"conversations": list(source)}), wrap) for source in sources]


def preprocess_plain(sources: Sources, tokenizer: Any) -> Batch:
    """`preprocess` by the template `plain`."""
    return preprocess(sources, tokenizer, True, _template(SeparatorStyle.PLAIN, "plain"))


def preprocess_v1(sources: Sources, tokenizer: Any, has_image: bool = False) -> Batch:
    """`preprocess` by `default_conversation` if it is of the style of v1, else by `v1`."""
    return preprocess(sources, tokenizer, has_image, _template(SeparatorStyle.TWO, "v1"))


def preprocess_llama_2(sources: Sources, tokenizer: Any, has_image: bool = False) -> Batch:
    """`preprocess` by `default_conversation` if it is of the style of Llama 2, else by `llava_llama_2`."""
    return preprocess(sources, tokenizer, has_image, _template(SeparatorStyle.LLAMA_2, "llava_llama_2"))


def preprocess_mpt(sources: Sources, tokenizer: Any, has_image: bool = False) -> Batch:
    """`preprocess` by `default_conversation` if it is of the style of MPT, else by `mpt`."""
    return preprocess(sources, tokenizer, has_image, _template(SeparatorStyle.MPT, "mpt"))


def preprocess_gemma(sources: Sources, tokenizer: Any, has_image: bool = False) -> Batch:
    """`preprocess` by the template `gemma_instruct`."""
    return preprocess(sources, tokenizer, has_image, _template(SeparatorStyle.GEMMA, "gemma_instruct"))


def preprocess_qwen(
    sources: Sources, tokenizer: Any, has_image: bool = False, max_len: int = 2048, system_message: str | None = None
) -> Batch:
    """`preprocess` by the Qwen form; `max_len` is accepted and has no effect, as in LLaVA-NeXT."""
    template = _template(SeparatorStyle.CHATML, "qwen_1_5")
    return preprocess(sources, tokenizer, has_image, template, system_message=system_message)


def preprocess_llama3(
    sources: Sources, tokenizer: Any, has_image: bool = False, max_len: int = 2048, system_message: str | None = None
) -> Batch:
    """`preprocess` by the Llama 3 form; `max_len` is accepted and has no effect, as in LLaVA-NeXT."""
    template = _template(SeparatorStyle.LLAMA_3, "llava_llama_3")
    return preprocess(sources, tokenizer, has_image, template, system_message=system_message)


def _template(style: SeparatorStyle, name: str) -> Conversation:
    current = conversation_lib.default_conversation
    return current if current.sep_style == style else conv_templates[name]


def _stack(rows: list[torch.Tensor]) -> torch.Tensor | list[torch.Tensor]:
    same = len({len(row) for row in rows}) == 1
    return torch.stack(rows) if same else rows
