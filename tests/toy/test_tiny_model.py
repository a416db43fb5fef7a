"""The untrained parts of the tiny checkpoint."""

from __future__ import annotations

import pytest
import torch
from transformers import AutoConfig, AutoTokenizer, Qwen2ForCausalLM

from llava.data.prompts import SCAN
from llava.toy import tiny_model

pytestmark = pytest.mark.slow  # the tokenizer is trained


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("tiny")
    tiny_model.write(path, seed=0)
    return path


@pytest.fixture(scope="module")
def tokenizer(folder):
    return AutoTokenizer.from_pretrained(folder / "language_model")


def test_special_tokens_are_qwens(tokenizer):
    assert tokenizer.eos_token == "<|im_end|>"
    assert tokenizer.pad_token == "<|endoftext|>"
    assert tokenizer.bos_token is None and tokenizer.unk_token is None
    for text in ("<|endoftext|>", "<|im_start|>", "<|im_end|>", "\n"):
        assert len(tokenizer(text).input_ids) == 1


def test_any_text_survives(tokenizer):
    for text in ("Größe 12,5 %\n\tKäse 日本 🙂", SCAN):
        assert tokenizer.decode(tokenizer(text).input_ids) == text


def test_words_of_the_prompts_are_single_tokens(tokenizer):
    assert len(tokenizer(" tumor").input_ids) == 1
    assert len(tokenizer("Yes").input_ids) == len(tokenizer("No").input_ids) == 1


def test_chat_template_is_the_qwen_form(tokenizer):
    chat = [{"role": "user", "content": "Hi"}]
    text = tokenizer.apply_chat_template(chat, tokenize=False, add_generation_prompt=True)
    assert text == (
        "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n"
        "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n"
    )


def test_language_model_loads_and_is_tied(folder, tokenizer):
    model = Qwen2ForCausalLM.from_pretrained(folder / "language_model")
    assert model.lm_head.weight is model.model.embed_tokens.weight
    assert model.config.vocab_size == len(tokenizer)
    assert model.config.eos_token_id == tokenizer.eos_token_id


def test_tower_is_a_siglip_of_the_demo_size(folder):
    config = AutoConfig.from_pretrained(folder / "vision_tower")
    vision = getattr(config, "vision_config", config)
    assert (vision.hidden_size, vision.num_hidden_layers, vision.image_size, vision.patch_size) == (128, 5, 56, 7)
    assert (folder / "vision_tower" / "preprocessor_config.json").exists()


def test_equal_seeds_give_equal_weights(folder):
    torch.manual_seed(0)
    again = tiny_model.build_language_model(tiny_model.build_tokenizer())
    stored = Qwen2ForCausalLM.from_pretrained(folder / "language_model")
    for (name, mine), theirs in zip(again.named_parameters(), stored.parameters(), strict=True):
        assert torch.equal(mine, theirs), name
