"""Prompt and prefix tuning of a model with images: PEFT's wrapper, with images put into the text before it acts.

PEFT puts what it trains in front of the embeddings (prompt tuning, Lester et al. 2021) or of all layers' keys and
values (prefix tuning, Li and Liang 2021), and lengthens the attention mask for it. An image that took its place
afterwards would find a mask of another length. So the images come first, here.
"""

from __future__ import annotations

from typing import Any

import torch
from peft import PeftModelForCausalLM
from peft.utils import PeftType
from torch import nn

from llava.constants import IMAGE_TOKEN_INDEX
from llava.errors import InputError


class VirtualTokensModel(PeftModelForCausalLM):
    """PEFT's wrapper of a LLaVA model, whose `forward` and `generate` it takes."""

    @classmethod
    def of(cls, wrapped: Any) -> Any:
        """A wrapper that PEFT made, as one of this class where it has virtual tokens and its model takes images."""
        if wrapped.active_peft_config.is_prompt_learning and hasattr(wrapped.base_model, "prompt_batch"):
            wrapped.__class__ = cls  # PEFT chooses the class by a table of its own; this one has no further state
        return wrapped

    @property
    def is_prefix(self) -> bool:
        """Whether the tokens are keys and values rather than embeddings."""
        return bool(self.active_peft_config.peft_type == PeftType.PREFIX_TUNING)

    def forward(  # type: ignore[override]  # what else there is goes on by name
        self,
        input_ids: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        inputs_embeds: torch.Tensor | None = None,
        labels: torch.Tensor | None = None,
        images: Any = None,
        image_sizes: Any = None,
        modalities: Any = None,
        **kwargs: Any,
    ) -> Any:
        """As the LLaVA model's; logits begin at the first virtual token of prompt tuning, and behind a prefix."""
        if inputs_embeds is None and images is not None:
            model: Any = self.base_model
            prepared = model.prepare_inputs_labels_for_multimodal(
                input_ids,
                kwargs.pop("position_ids", None),
                attention_mask,
                None,
                labels,
                images,
                modalities,
                image_sizes,
            )
            input_ids, kwargs["position_ids"], attention_mask, _, inputs_embeds, labels = prepared
        if input_ids is not None and bool((input_ids == IMAGE_TOKEN_INDEX).any()):
            raise InputError("the text has <image> marks, but no images were given or the model has no vision tower.")
        return super().forward(input_ids, attention_mask, inputs_embeds, labels, **kwargs)

    @torch.no_grad()
    def generate(self, inputs: torch.Tensor | None = None, *args: Any, **kwargs: Any) -> Any:
        """As the LLaVA model's; the virtual tokens are in front of the first pass alone, and count as its tokens."""
        model: Any = self.base_model
        tokens = self.active_peft_config.num_virtual_tokens
        batch, rest = model.prompt_batch(inputs, *args, **kwargs, tokens_in_front=tokens)
        rows = len(batch.embeds)
        mask = torch.cat([batch.mask.new_ones(rows, tokens), batch.mask], dim=1)
        if self.is_prefix:
            copies = max(rest.get("num_beams") or 1, rest.get("num_return_sequences") or 1)
            rest["past_key_values"] = self.get_prompt(rows * copies)
            front = batch.embeds.new_zeros(rows, tokens, batch.embeds.shape[-1])  # cut off, as what the cache has
        else:
            front = self.get_prompt(rows).to(batch.embeds)
        return model.generate_from(torch.cat([front, batch.embeds], dim=1), mask, **rest)


@torch.no_grad()
def prefix_from_words(model: Any) -> None:
    """Set the prefix to the keys and values that as many words of the vocabulary have, drawn at random.

    Random numbers as a prefix spoil a model, words do not: Li and Liang 2021, section 7.4; Malladi et al. 2023,
    appendix E.4, for MeZO.
    """
    config, base = model.active_peft_config, model.base_model
    device = base.get_input_embeddings().weight.device
    ids = torch.randint(base.get_input_embeddings().num_embeddings, (1, config.num_virtual_tokens)).to(device)
    training = base.training
    cache = base.eval()(input_ids=ids, use_cache=True, logits_to_keep=1).past_key_values
    base.train(training)
    pairs = [tensor for layer in cache.layers for tensor in (layer.keys, layer.values)]
    # [layers * 2, 1, heads, tokens, width] to [tokens, layers * 2 * heads * width]
    values = torch.stack(pairs)[:, 0].permute(2, 0, 1, 3).reshape(config.num_virtual_tokens, -1)
    embedding: nn.Embedding = model.prompt_encoder[model.active_adapter].embedding
    embedding.weight.copy_(values)
