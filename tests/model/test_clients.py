"""Calls as evaluation harnesses make them: load, process, tokenise, generate, with their arguments."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import torch
from PIL import Image

from llava.constants import (
    DEFAULT_IM_END_TOKEN,
    DEFAULT_IM_START_TOKEN,
    DEFAULT_IMAGE_TOKEN,
    IGNORE_INDEX,
    IMAGE_TOKEN_INDEX,
)
from llava.conversation import SeparatorStyle, conv_templates
from llava.mm_utils import KeywordsStoppingCriteria, get_model_name_from_path, process_images, tokenizer_image_token
from llava.model.builder import load_pretrained_model


@pytest.mark.parametrize("sizes", [[(40, 90)], [(64, 32), (32, 64)]], ids=["one image", "two images"])
def test_image_question(sizes: list[tuple[int, int]], checkpoint: Path) -> None:
    arguments = {"multimodal": True, "customized_config": None, "attn_implementation": "sdpa"}
    tokenizer, model, image_processor, max_length = load_pretrained_model(
        str(checkpoint),
        None,
        get_model_name_from_path(str(checkpoint)),
        device_map="cpu",
        torch_dtype="float32",
        overwrite_config={"mm_spatial_pool_stride": 2, "mm_spatial_pool_mode": "bilinear"},
        **arguments,
    )
    model.eval()
    model.tie_weights()
    assert (max_length, model.config.mm_spatial_pool_stride) == (4096, 2)

    images = [Image.new("RGB", size, "red") for size in sizes]
    tensors = process_images(images, image_processor, model.config)
    tensors = [tensor.to(dtype=torch.float32) for tensor in tensors]
    conv = copy.deepcopy(conv_templates["qwen_1_5"])
    assert conv.sep_style != SeparatorStyle.TWO
    conv.append_message(conv.roles[0], " ".join([DEFAULT_IMAGE_TOKEN] * len(images)) + "\nWhat is it?")
    conv.append_message(conv.roles[1], None)
    input_ids = tokenizer_image_token(conv.get_prompt(), tokenizer, IMAGE_TOKEN_INDEX, return_tensors="pt").unsqueeze(0)
    pad = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else tokenizer.eos_token_id
    stopping = KeywordsStoppingCriteria([conv.sep], tokenizer, input_ids)
    with torch.inference_mode():
        output = model.generate(
            input_ids,
            attention_mask=input_ids.ne(pad),
            pad_token_id=pad,
            images=tensors,
            image_sizes=[image.size for image in images],
            use_cache=True,
            stopping_criteria=[stopping],
            do_sample=False,
            temperature=None,
            top_p=None,
            num_beams=1,
            max_new_tokens=4,
        )
    assert 1 <= output.shape[1] <= 4
    assert isinstance(tokenizer.batch_decode(output, skip_special_tokens=True)[0], str)


def test_constants() -> None:
    tokens = (DEFAULT_IMAGE_TOKEN, DEFAULT_IM_START_TOKEN, DEFAULT_IM_END_TOKEN)
    assert tokens == ("<image>", "<im_start>", "<im_end>")
    assert (IGNORE_INDEX, IMAGE_TOKEN_INDEX) == (-100, -200)
