"""Whether a checkpoint and its conversion are one model: their logits on made-up pictures, a video and a text."""

from __future__ import annotations

import gc
import logging
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from PIL import Image
from transformers import AutoTokenizer, LlavaOnevisionForConditionalGeneration

from llava.constants import IMAGE_TOKEN_INDEX
from llava.errors import InputError
from llava.mm_utils import get_model_name_from_path, image_processing
from llava.model.builder import load_pretrained_model
from llava.model.hf.processing import media_tokens

logger = logging.getLogger(__name__)

TOLERANCE = 1e-3
"""Largest difference of logits, as a part of the largest logit."""
_TEXT = "What does this show? Answer in one word."


@dataclass(frozen=True)
class Case:
    """One sample.

    Attributes:
        name: of its kind.
        pixels: of each medium, [tiles or frames, 3, S, S].
        sizes: (width, height) of each.
        kind: "image" or "video".
        ids: [length], -200 for a medium.
    """

    name: str
    pixels: Sequence[torch.Tensor]
    sizes: Sequence[tuple[int, int]]
    kind: str
    ids: torch.Tensor


def check_agreement(ours: str, theirs: str, images_only: bool) -> dict[str, float]:
    """Largest difference of logits for each kind of sample, in float32 on the CPU.

    Args:
        ours, theirs: folder or hub id of the checkpoint in either format.
        images_only: leave videos out.

    Raises:
        InputError: a difference that is more than rounding.
    """
    name = get_model_name_from_path(ours)
    arguments: dict[str, Any] = {"device_map": "cpu", "torch_dtype": "float32", "attn_implementation": "sdpa"}
    tokenizer, model, processor, _ = load_pretrained_model(ours, None, name, multimodal=True, **arguments)
    model.config.tokenizer_model_max_length = None  # of training; samples are not to be cut
    cases = _cases(tokenizer, processor, model.config)
    cases = [case for case in cases if not (images_only and case.kind == "video")]
    expected = [_our_logits(model, case) for case in cases]
    words = tokenizer(_TEXT).input_ids
    rows = model.get_input_embeddings().num_embeddings
    del model
    gc.collect()
    other = LlavaOnevisionForConditionalGeneration.from_pretrained(theirs, dtype=torch.float32).eval()
    their_tokenizer = AutoTokenizer.from_pretrained(theirs)
    if their_tokenizer(_TEXT).input_ids != words:
        raise InputError(f"{theirs}: its tokenizer cuts {_TEXT!r} into other tokens than that of {ours}")
    tokens = media_tokens(their_tokenizer, rows)
    differences, largest = {}, 0.0
    for case, (mine, length) in zip(cases, expected, strict=True):
        try:
            logits = _their_logits(other, case, length, {"image": tokens.image, "video": tokens.video})
        except ValueError as error:  # they count the media's tokens
            hint = "; --images-only leaves videos out" if case.kind == "video" else ""
            raise InputError(
                f"{theirs}: {case.name} has another number of tokens than in {ours}: {error}{hint}"
            ) from error
        differences[case.name] = (logits[..., : mine.shape[2]] - mine[..., : logits.shape[2]]).abs().max().item()
        largest = max(largest, mine.abs().max().item())
    said = ", ".join(f"{name} {value:.1e}" for name, value in differences.items())
    logger.info("largest difference of logits, up to %.1f large: %s", largest, said)
    if not max(differences.values()) <= TOLERANCE * max(1.0, largest):
        raise InputError(f"{ours} and {theirs} do not give the same logits: {said}. Nothing is written")
    return differences


def _cases(tokenizer: Any, processor: Any, config: Any) -> list[Case]:
    """One picture, several pictures, a video, text alone."""
    words = torch.tensor(tokenizer(_TEXT).input_ids)
    generator = torch.Generator().manual_seed(0)
    side = processor.crop_size["height"]

    def picture(width: int, height: int) -> Image.Image:
        small = torch.randint(0, 256, (8, 8, 3), generator=generator, dtype=torch.uint8)
        return Image.fromarray(small.numpy()).resize((width, height), Image.Resampling.BICUBIC)

    def pixels(name: str | None, size: tuple[int, int]) -> torch.Tensor:
        made = image_processing(name)(picture(*size), processor, config.image_grid_pinpoints)
        return made if made.ndim == 4 else made[None]

    def case(name: str, mode: str | None, sizes: Sequence[tuple[int, int]], kind: str = "image") -> Case:
        marks = torch.full((len(sizes),), IMAGE_TOKEN_INDEX)
        return Case(name, [pixels(mode, size) for size in sizes], sizes, kind, torch.cat([marks, words]))

    wide, tall = (side * 2, side), (side, side + side // 2)
    video = case("video", None, [(side, side)] * 3, "video")
    frames = torch.cat(list(video.pixels))
    return [
        case("one image", config.image_aspect_ratio, [wide]),
        case("several images", "pad", [wide, tall]),
        replace(video, pixels=[frames], sizes=video.sizes[:1], ids=torch.cat([video.ids[:1], words])),
        case("text", None, []),
    ]


@torch.no_grad()
def _our_logits(model: Any, case: Case) -> tuple[torch.Tensor, int]:
    """Logits [1, words, vocabulary] of the words, which come last and see all media, and the number of all tokens."""
    ids, words = case.ids[None], int((case.ids != IMAGE_TOKEN_INDEX).sum())
    if not case.pixels:
        return model(ids).logits, words
    kinds = [case.kind] * len(case.pixels)
    prepared = model.prepare_inputs_labels_for_multimodal(
        ids, None, None, None, None, list(case.pixels), kinds, list(case.sizes)
    )
    embeds = prepared[4]
    return model(inputs_embeds=embeds, logits_to_keep=words).logits, embeds.shape[1]


@torch.no_grad()
def _their_logits(model: Any, case: Case, length: int, ids_of: dict[str, int]) -> torch.Tensor:
    """As ours; `length` tokens in all, of which those that are no words stand for the media.

    Raises:
        ValueError: their model has another number of tokens for the media.
    """
    words = case.ids[case.ids != IMAGE_TOKEN_INDEX]
    ids = torch.cat([torch.full((length - len(words),), ids_of[case.kind]), words])[None]
    if not case.pixels:
        return model(input_ids=ids).logits
    keep = {"logits_to_keep": len(words)}
    if case.kind == "video":
        return model(input_ids=ids, pixel_values_videos=case.pixels[0][None], **keep).logits
    sizes = torch.tensor([[height, width] for width, height in case.sizes])
    pixels = torch.stack(list(case.pixels))
    count = torch.tensor([len(case.pixels)])
    return model(input_ids=ids, pixel_values=pixels, image_sizes=sizes, batch_num_images=count, **keep).logits
