"""The untrained parts of the tiny checkpoint: a plain Qwen2 with its tokenizer, and a SigLIP tower.

    python -m llava.toy.tiny_model --output DIR --seed 0

writes DIR/language_model and DIR/vision_tower, ordinary transformers folders with random weights, as
`llava.train.train --model_name_or_path DIR/language_model --vision_tower DIR/vision_tower` expects them.
Widths are 128; four layers each (the tower has a fifth that is never used, as with the full-size SigLIP).
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import (  # type: ignore[attr-defined]
    PreTrainedTokenizerFast,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen2TokenizerFast,
    SiglipImageProcessor,
    SiglipVisionConfig,
    SiglipVisionModel,
)

from llava.errors import command
from llava.mezo.durable import follow_umask
from llava.toy import charts, figures, pretraining, scans
from llava.toy.drawing import SIZE, Sample, sample_rng

END_OF_TEXT, TURN_START, TURN_END = "<|endoftext|>", "<|im_start|>", "<|im_end|>"
VOCABULARY = 640  # byte-level pieces, before the three special tokens
PATCH = 7
MAX_LENGTH = 4096

# The pre-tokenisation pattern of Qwen2: contractions, words, single digits, punctuation, line breaks, blanks.
_PATTERN = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_CHAT_TEMPLATE = (
    "{% for message in messages %}"
    "{% if loop.first and message['role'] != 'system' %}"
    "{{ '<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n' }}"
    "{% endif %}"
    "{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
_FRAME = ["system\nYou are a helpful assistant.", "user\n", "assistant\n", "Yes", "No", "Find the answer."]


def build_tokenizer() -> PreTrainedTokenizerFast:
    """A byte-level BPE trained on the demo's own prompts, with Qwen2's special tokens; `"\\n"` is one token."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.normalizer = normalizers.NFC()
    split = pre_tokenizers.Split(Regex(_PATTERN), behavior="isolated")
    byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([split, byte_level])
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.post_processor = processors.ByteLevel(trim_offsets=False)
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=VOCABULARY, initial_alphabet=alphabet, show_progress=False)
    tokenizer.train_from_iterator(_corpus(), trainer)
    tokenizer.add_special_tokens([END_OF_TEXT, TURN_START, TURN_END])
    wrapped = Qwen2TokenizerFast(
        tokenizer_object=tokenizer,
        eos_token=TURN_END,
        pad_token=END_OF_TEXT,
        unk_token=None,
        bos_token=None,
        additional_special_tokens=[TURN_START, TURN_END],
        model_max_length=MAX_LENGTH,
    )
    wrapped.chat_template = _CHAT_TEMPLATE
    return wrapped


def build_language_model(tokenizer: Any) -> Qwen2ForCausalLM:
    """A randomly initialised Qwen2 of width 128 with tied embeddings (the global generator decides the weights)."""
    config = Qwen2Config(
        vocab_size=len(tokenizer),
        hidden_size=128,
        intermediate_size=384,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=MAX_LENGTH,
        tie_word_embeddings=True,
        initializer_range=0.06,  # near 1 / sqrt(width), as the usual 0.02 is for a width of 2048
        bos_token_id=tokenizer.convert_tokens_to_ids(END_OF_TEXT),
        eos_token_id=tokenizer.convert_tokens_to_ids(TURN_END),
        pad_token_id=None,
    )
    return Qwen2ForCausalLM(config)


def build_tower() -> tuple[SiglipVisionModel, SiglipImageProcessor]:
    """A SigLIP of width 128 for 56-pixel pictures in patches of 7, random but for its positions, and its processor."""
    config = SiglipVisionConfig(
        hidden_size=128,
        intermediate_size=512,
        num_hidden_layers=5,
        num_attention_heads=4,
        image_size=SIZE,
        patch_size=PATCH,
        vision_use_head=False,
    )
    size = {"height": SIZE, "width": SIZE}
    processor = SiglipImageProcessor(size=size, image_mean=[0.5] * 3, image_std=[0.5] * 3)
    tower = SiglipVisionModel(config)
    (positions,) = (module for name, module in tower.named_modules() if name.endswith("position_embedding"))
    positions.weight.data.copy_(_waves(SIZE // PATCH, config.hidden_size))
    return tower, processor


def _waves(side: int, width: int) -> torch.Tensor:
    """Sines and cosines of the row and the column of each patch, [side * side, width].

    The usual random positions are so faint beside the pixels that a tower of this size does not find them in time.
    """
    frequency = math.pi / 4 * 0.1 ** torch.linspace(0, 1, width // 4 + 1)[:-1]
    rows, columns = (n.flatten()[:, None] * frequency for n in torch.meshgrid(*[torch.arange(side)] * 2, indexing="ij"))
    return 0.7 * torch.cat([columns.sin(), columns.cos(), rows.sin(), rows.cos()], dim=1)


def write(folder: Path, seed: int) -> None:
    """Write both untrained models below `folder`; equal seeds give equal weights."""
    torch.manual_seed(seed)
    tokenizer = build_tokenizer()
    build_language_model(tokenizer).save_pretrained(folder / "language_model")
    tokenizer.save_pretrained(folder / "language_model")
    tower, processor = build_tower()
    tower.save_pretrained(folder / "vision_tower")
    processor.save_pretrained(folder / "vision_tower")
    follow_umask(*folder.glob("*/*.safetensors"))


def _corpus() -> Iterator[str]:
    for number in range(3000):
        yield from _texts(pretraining.draw(0, number))
    for number in range(600):
        for drawer in (scans, figures, charts):
            yield from _texts(drawer.draw(sample_rng(0, number), number))
    yield from _FRAME * 50


def _texts(sample: Sample) -> Iterator[str]:
    for item in sample.rounds:
        yield from item.prompt.split("<image>")
        yield item.answer


@command
def main(argv: list[str] | None = None) -> None:
    """Entry point, see the module's docstring."""
    parser = argparse.ArgumentParser(description="Write the untrained language model and vision tower.")
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args(argv)
    write(arguments.output, arguments.seed)


if __name__ == "__main__":
    main()
