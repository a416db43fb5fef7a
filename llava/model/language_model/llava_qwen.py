"""LLaVA on a Qwen2 language model, as LLaVA-OneVision has it."""

from __future__ import annotations

from typing import ClassVar

from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM, Qwen2Config, Qwen2ForCausalLM, Qwen2Model

from llava.model.configuration import LlavaConfigMixin
from llava.model.llava_arch import LlavaMetaForCausalLM, LlavaMetaModel
from llava.model.multimodal_encoder.builder import TOWER_LAYERS


class LlavaQwenConfig(LlavaConfigMixin, Qwen2Config):
    model_type = "llava_qwen"
    base_model_type = "qwen2"


class LlavaQwenModel(LlavaMetaModel, Qwen2Model):
    config_class = LlavaQwenConfig


class LlavaQwenForCausalLM(LlavaMetaForCausalLM, Qwen2ForCausalLM):  # type: ignore[misc]  # generate takes images
    config_class = LlavaQwenConfig
    _no_split_modules: ClassVar[list[str]] = ["Qwen2DecoderLayer", *TOWER_LAYERS]  # type: ignore[misc]

    def __init__(self, config: LlavaQwenConfig) -> None:
        # Past Qwen2ForCausalLM's own __init__, which would build the language model a first time without images.
        super(Qwen2ForCausalLM, self).__init__(config)
        self.model = LlavaQwenModel(config)
        self.vocab_size = config.vocab_size
        self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        self.post_init()


AutoConfig.register(LlavaQwenConfig.model_type, LlavaQwenConfig)
AutoModelForCausalLM.register(LlavaQwenConfig, LlavaQwenForCausalLM)
