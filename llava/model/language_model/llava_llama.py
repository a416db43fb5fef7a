"""LLaVA on a Llama language model (Vicuna, Llama 3)."""

from __future__ import annotations

from typing import ClassVar

from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM, LlamaModel

from llava.model.configuration import LlavaConfigMixin
from llava.model.llava_arch import LlavaMetaForCausalLM, LlavaMetaModel
from llava.model.multimodal_encoder.builder import TOWER_LAYERS


class LlavaConfig(LlavaConfigMixin, LlamaConfig):
    model_type = "llava_llama"
    base_model_type = "llama"


class LlavaLlamaModel(LlavaMetaModel, LlamaModel):
    config_class = LlavaConfig


class LlavaLlamaForCausalLM(LlavaMetaForCausalLM, LlamaForCausalLM):  # type: ignore[misc]  # generate takes images
    config_class = LlavaConfig
    _no_split_modules: ClassVar[list[str]] = ["LlamaDecoderLayer", *TOWER_LAYERS]  # type: ignore[misc]

    def __init__(self, config: LlavaConfig) -> None:
        # Past LlamaForCausalLM's own __init__, which would build the language model a first time without images.
        super(LlamaForCausalLM, self).__init__(config)
        self.model = LlavaLlamaModel(config)
        self.vocab_size = config.vocab_size
        self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        self.post_init()


AutoConfig.register(LlavaConfig.model_type, LlavaConfig)
AutoModelForCausalLM.register(LlavaConfig, LlavaLlamaForCausalLM)
