"""The loss of a causal language model without its logits: what a zeroth-order step needs of a forward.

The head and the cross entropy are `llava.mezo.head`; this module finds the parts of the model. It relies on what
LLaVA-NeXT's models and transformers' have in common since 4.40.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import nn

from llava.mezo.head import cross_entropy, supervised

Measure = Callable[[torch.Tensor, torch.Tensor, torch.Tensor], torch.Tensor]
"""`cross_entropy` or `token_errors` of `llava.mezo.head`, or another function of what these take."""


def sparse_loss(network: Any, inputs: Mapping[str, Any], measure: Measure = cross_entropy) -> torch.Tensor | None:
    """Mean next-token loss of a batch, as `network(**inputs).loss` gives it; None if the model is of another kind.

    Args:
        network: a LLaVA model or a causal language model of transformers, also inside PEFT's wrapper.
        inputs: what the collator gives: `input_ids`, `labels`, `attention_mask`, with images also those.
        measure: what is taken of hidden states, head and supervised tokens.
    """
    model = whole_model(network)
    head = None if model is None else plain_head(model)
    if model is None or head is None or inputs.get("labels") is None:
        return None
    states, targets = supervised(*last_hidden(model, inputs))
    return measure(states, head.weight, targets)


def whole_model(network: Any) -> Any:
    """The model whose forward is all that the network does: inside PEFT's wrapper where adapters are within layers.

    None where the wrapper itself does something, as it puts tokens in front in prompt and prefix tuning.
    """
    if not hasattr(network, "get_base_model"):
        return network
    # as every version of PEFT has it
    prompts = any(hasattr(config, "num_virtual_tokens") for config in network.peft_config.values())
    return None if prompts else network.get_base_model()


def plain_head(model: Any) -> nn.Linear | None:
    """The output head, where logits are hidden states times its weights and nothing else."""
    config = getattr(model, "config", None)
    if getattr(config, "model_type", None) not in _PLAIN_HEADS:
        return None
    head = model.get_output_embeddings()
    return head if type(head) is nn.Linear and head.bias is None else None


_PLAIN_HEADS = ("llava_qwen", "llava_llama", "qwen2", "llama")
"""Model types whose forward is body, head, cross entropy; others may scale or cap logits in between."""


def last_hidden(model: Any, inputs: Mapping[str, Any]) -> tuple[torch.Tensor, torch.Tensor]:
    """Last hidden states [batch, length, D] and labels [batch, length], both after images are put into the text."""
    labels: Any
    ids, mask, labels = (inputs.get(name) for name in ("input_ids", "attention_mask", "labels"))
    embeds = None
    if inputs.get("images") is not None:
        ids, _, mask, _, embeds, labels = model.prepare_inputs_labels_for_multimodal(
            ids,
            None,
            mask,
            None,
            labels,
            inputs["images"],
            modalities=inputs.get("modalities", ["image"]),
            image_sizes=inputs.get("image_sizes"),
        )
    if mask is not None and padded_on_the_right(mask):
        mask = None  # no token sees what comes after it; without a mask, attention skips half of the work
    outputs = model.base_model(input_ids=ids, inputs_embeds=embeds, attention_mask=mask, use_cache=False)
    return outputs[0], labels


def padded_on_the_right(mask: torch.Tensor) -> bool:
    """Whether padding, if any, comes after the tokens in every row of [batch, length]."""
    return bool((mask[:, 1:] <= mask[:, :-1]).all())
