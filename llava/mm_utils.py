"""From pictures to tiles of pixels, and from prompts with `<image>` marks to token ids.

Sizes are (width, height) in pixels everywhere, as PIL gives them. A tile is a square of the vision tower's
input size S. The modes of `--image_aspect_ratio` are picked in one place, `image_processing`.
"""

from __future__ import annotations

import ast
import base64
import math
import re
from collections.abc import Callable, Sequence
from functools import partial
from io import BytesIO
from typing import Any, NoReturn

import torch
from PIL import Image
from transformers import StoppingCriteria

from llava.constants import DEFAULT_IMAGE_TOKEN, IMAGE_TOKEN_INDEX
from llava.errors import InputError

Size = tuple[int, int]
ImageProcessing = Callable[[Image.Image, Any, Any], torch.Tensor]

ASPECT_RATIOS = "square, pad, anyres, anyres_max_N (N a whole number, such as anyres_max_9)"
LONGEST_PADDED_SIDE = 20_000
"""Of a picture that is padded to a square, in pixels: more than a gigabyte."""
SENTENCEPIECE_SPACE = "\u2581"
PINPOINTS_HELP = 'give "(1x1),...,(6x6)" or a list of [width, height] pairs in pixels'


# ---------------------------------------------------------------------------------------------- grids of tiles


def expand_grid_pinpoints(pinpoints: Any, patch_size: int) -> list[list[int]]:
    """List the resolutions that `--image_grid_pinpoints` stands for.

    Args:
        pinpoints: `"(AxB),...,(CxD)"`: all columns A..C by rows B..D of tiles; or a list of [width, height] pairs
            in pixels, or such a list written as a string.
        patch_size: side of a tile in pixels; used by the first form only.

    Returns:
        [width, height] pairs in pixels, columns outermost.

    Raises:
        InputError: for anything else.
    """
    if isinstance(pinpoints, str):
        if "x" in pinpoints:
            return _expand_tile_range(pinpoints, patch_size)
        try:
            pinpoints = ast.literal_eval(pinpoints)
        except (ValueError, SyntaxError) as error:
            raise InputError(f"--image_grid_pinpoints {pinpoints!r} cannot be read: {PINPOINTS_HELP}.") from error
    is_list = isinstance(pinpoints, (list, tuple)) and len(pinpoints) > 0
    if not is_list or not all(_is_resolution(pair) for pair in pinpoints):
        raise InputError(f"--image_grid_pinpoints {pinpoints!r} is not a list of resolutions: {PINPOINTS_HELP}.")
    return [[int(width), int(height)] for width, height in pinpoints]


def _is_resolution(pair: Any) -> bool:
    return (
        isinstance(pair, (list, tuple)) and len(pair) == 2 and all(isinstance(side, int) and side > 0 for side in pair)
    )


def _expand_tile_range(pinpoints: str, patch_size: int) -> list[list[int]]:
    corners = [(int(columns), int(rows)) for columns, rows in re.findall(r"\((\d+)x(\d+)\)", pinpoints)]
    if not corners:
        raise InputError(f"--image_grid_pinpoints {pinpoints!r} cannot be read: {PINPOINTS_HELP}.")
    (first_column, first_row), (last_column, last_row) = corners[0], corners[-1]
    grids = [
        [columns * patch_size, rows * patch_size]
        for columns in range(first_column, last_column + 1)
        for rows in range(first_row, last_row + 1)
    ]
    if not grids or min(first_column, first_row) < 1:
        raise InputError(f"--image_grid_pinpoints {pinpoints!r} names no grid of tiles: {PINPOINTS_HELP}.")
    return grids


def select_best_resolution(original_size: Sequence[int], possible_resolutions: Sequence[Sequence[int]]) -> Size:
    """Pick the resolution that keeps most of the picture's pixels; among equals the one that wastes least.

    Args:
        original_size: (width, height) of the picture.
        possible_resolutions: [width, height] pairs; on a tie the first one wins.
    """
    original_width, original_height = original_size
    if original_width < 1 or original_height < 1:
        raise InputError(f"an image of {original_width} x {original_height} pixels has no content.")

    def merit(resolution: Sequence[int]) -> tuple[int, int]:
        width, height = resolution
        scale = min(width / original_width, height / original_height)
        fitted = int(original_width * scale) * int(original_height * scale)
        effective = min(fitted, original_width * original_height)
        return effective, effective - width * height

    width, height = max(possible_resolutions, key=merit)
    return width, height


def get_anyres_image_grid_shape(image_size: Sequence[int], grid_pinpoints: Any, patch_size: int) -> tuple[int, int]:
    """Grid (columns, rows) of tiles of side `patch_size` that `process_anyres_image` cuts this picture into."""
    width, height = select_best_resolution(image_size, expand_grid_pinpoints(grid_pinpoints, patch_size))
    return width // patch_size, height // patch_size


# ---------------------------------------------------------------------------------------------- pictures


def resize_and_pad_image(image: Image.Image, target_resolution: Size) -> Image.Image:
    """Fit the picture into `target_resolution`, centred on black, its shape kept."""
    target_width, target_height = target_resolution
    scale_width = target_width / image.width
    scale_height = target_height / image.height
    if scale_width < scale_height:
        new_size = (target_width, min(math.ceil(image.height * scale_width), target_height))
    else:
        new_size = (min(math.ceil(image.width * scale_height), target_width), target_height)
    resized = image.resize(new_size, Image.Resampling.BICUBIC)
    canvas = Image.new("RGB", (target_width, target_height), (0, 0, 0))
    canvas.paste(resized, ((target_width - new_size[0]) // 2, (target_height - new_size[1]) // 2))
    return canvas


def divide_to_patches(image: Image.Image, patch_size: int) -> list[Image.Image]:
    """Cut into tiles of side `patch_size`, row by row from the top left."""
    return [
        image.crop((left, top, left + patch_size, top + patch_size))
        for top in range(0, image.height, patch_size)
        for left in range(0, image.width, patch_size)
    ]


def expand2square(pil_img: Image.Image, background_color: Any) -> Image.Image:
    """Centre on a square of the longer side; `background_color` is a value per channel of the picture's mode."""
    width, height = pil_img.size
    if width == height:
        return pil_img
    side = max(width, height)
    square = Image.new(pil_img.mode, (side, side), background_color)
    square.paste(pil_img, ((side - width) // 2, (side - height) // 2))
    return square


def load_image_from_base64(image: str | bytes) -> Image.Image:
    """Decode a picture file given as base64 text."""
    return Image.open(BytesIO(base64.b64decode(image)))


def processor_tile_size(processor: Any) -> int:
    """Side S in pixels of what the image processor gives out.

    Raises:
        InputError: when the processor crops to another size than it resizes to, as tiles would then lose their rim.
    """
    size = processor.size
    if isinstance(size, (int, list, tuple)):
        side = size if isinstance(size, int) else size[0]
    else:
        side = size["shortest_edge"] if size.get("shortest_edge") is not None else size["height"]
    crop = getattr(processor, "crop_size", None)
    if crop is not None and crop["height"] != side:
        raise InputError(
            f"image_aspect_ratio anyres needs an image processor that resizes and crops to one size, "
            f"but this one resizes to {side} and crops to {crop['height']}: use image_aspect_ratio pad."
        )
    return int(side)


def _square_image(image: Image.Image, processor: Any, grid_pinpoints: Any = None) -> torch.Tensor:
    return processor.preprocess(image.convert("RGB"), return_tensors="pt")["pixel_values"][0]


def _check_square(size: Size) -> None:
    """`InputError` for a picture so long that the square around it would not fit the memory."""
    if max(size) > LONGEST_PADDED_SIDE:
        raise InputError(
            f"an image of {size[0]} x {size[1]} pixels is too long to be padded to a square; sides of at most "
            f"{LONGEST_PADDED_SIDE} can be: scale it down"
        )


def _padded_image(image: Image.Image, processor: Any, grid_pinpoints: Any = None) -> torch.Tensor:
    _check_square(image.size)
    background = tuple(int(255 * mean) for mean in processor.image_mean)
    return _square_image(expand2square(image.convert("RGB"), background), processor)


def process_anyres_image(image: Image.Image, processor: Any, grid_pinpoints: Any) -> torch.Tensor:
    """The whole picture squeezed into one tile, then the tiles of its best grid, row by row.

    Returns:
        Float tensor [1 + rows * columns, 3, S, S]; never fewer than two tiles.
    """
    image = image.convert("RGB")
    tile = processor_tile_size(processor)
    best = select_best_resolution(image.size, expand_grid_pinpoints(grid_pinpoints, tile))
    tiles = [image.resize((tile, tile), Image.Resampling.BICUBIC)]
    tiles += divide_to_patches(resize_and_pad_image(image, best), tile)
    return processor.preprocess(tiles, return_tensors="pt")["pixel_values"]


_IMAGE_PROCESSING: dict[str, ImageProcessing] = {
    "square": _square_image,
    "pad": _padded_image,
    "anyres": process_anyres_image,
}


def image_processing(name: str | None) -> ImageProcessing:
    """The function (image, processor, grid_pinpoints) -> tensor of an `--image_aspect_ratio`; None means square.

    Tensors are [3, S, S] for square and pad, [tiles, 3, S, S] for anyres and anyres_max_N, whose N limits
    the number of visual tokens inside the model and does not change the pixels.
    """
    name = "square" if name is None else name
    key = "anyres" if max_anyres_tiles(name) is not None else name
    if key not in _IMAGE_PROCESSING:
        raise InputError(f"--image_aspect_ratio {name!r} is not supported; allowed: {ASPECT_RATIOS}.")
    return _IMAGE_PROCESSING[key]


def count_tiles(name: str | None, size: Size, processor: Any, grid_pinpoints: Any) -> int:
    """How many tiles `image_processing(name)` makes of a picture of this size; no pixel is touched."""
    if image_processing(name) is _padded_image:
        _check_square(size)
    if image_processing(name) is not process_anyres_image:
        return 1
    tile = processor_tile_size(processor)
    width, height = select_best_resolution(size, expand_grid_pinpoints(grid_pinpoints, tile))
    return 1 + math.ceil(width / tile) * math.ceil(height / tile)


def max_anyres_tiles(name: str) -> int | None:
    """N of `anyres_max_N`, or None for another aspect ratio."""
    match = re.fullmatch(r"anyres_max_([1-9]\d*)", name)
    return int(match.group(1)) if match else None


def process_images(
    images: Sequence[Image.Image] | Image.Image, image_processor: Any, model_cfg: Any
) -> torch.Tensor | list[torch.Tensor]:
    """Pixels of several pictures, as `model_cfg.image_aspect_ratio` and `model_cfg.image_grid_pinpoints` say.

    Returns:
        One stacked tensor when all shapes agree, else a list with one tensor per picture.
    """
    pictures = [images] if isinstance(images, Image.Image) else list(images)
    if not pictures:
        raise InputError("process_images was given no image.")
    process = image_processing(getattr(model_cfg, "image_aspect_ratio", None))
    pinpoints = getattr(model_cfg, "image_grid_pinpoints", None)
    tensors = [process(picture, image_processor, pinpoints) for picture in pictures]
    if all(tensor.shape == tensors[0].shape for tensor in tensors):
        return torch.stack(tensors)
    return tensors


def _not_supported(mode: str, *args: Any, **kwargs: Any) -> NoReturn:
    raise InputError(f"{mode} images are not supported; --image_aspect_ratio allows: {ASPECT_RATIOS}.")


process_highres_image = partial(_not_supported, "highres")
process_highres_image_crop_split = partial(_not_supported, "crop_split")
resize_and_center_crop = partial(_not_supported, "crop_split")
auto_pad_images = partial(_not_supported, "crop_split")
extract_patches = partial(_not_supported, "crop_split")


# ---------------------------------------------------------------------------------------------- text


def tokenizer_image_token(
    prompt: str, tokenizer: Any, image_token_index: int = IMAGE_TOKEN_INDEX, return_tensors: str | None = None
) -> list[int] | torch.Tensor:
    """Tokenise the text between the `<image>` marks piece by piece and put `image_token_index` for each mark.

    Pieces never merge across a mark. A tokenizer that begins every piece with bos contributes one bos only.

    Returns:
        A list of ids, or a 1-d long tensor with `return_tensors="pt"`.
    """
    pieces = [_tokenize(piece, tokenizer) for piece in prompt.split(DEFAULT_IMAGE_TOKEN)]
    has_bos = tokenizer.bos_token_id is not None and pieces[0][:1] == [tokenizer.bos_token_id]
    ids = list(pieces[0])
    for piece in pieces[1:]:
        ids += [image_token_index, *piece[1 if has_bos else 0 :]]
    if return_tensors is None:
        return ids
    if return_tensors == "pt":
        return torch.tensor(ids, dtype=torch.long)
    raise InputError(f'return_tensors {return_tensors!r} is not supported; allowed: None, "pt".')


def _tokenize(text: str, tokenizer: Any) -> list[int]:
    """Token ids of a text that stands alone, its leading space kept.

    SentencePiece puts a space in front of every text. The library's fast Llama tokenizer leaves it out where the text
    has one already, so that one is lost; the piece for a space, written out, brings it back.
    """
    if text.startswith(" ") and tokenizer(" a").input_ids == tokenizer("a").input_ids:
        text = SENTENCEPIECE_SPACE + text
    return tokenizer(text).input_ids


def get_model_name_from_path(model_path: str) -> str:
    """Last part of the path; for a `checkpoint-N` folder with its parent's name in front."""
    parts = model_path.strip("/").split("/")
    if parts[-1].startswith("checkpoint-") and len(parts) > 1:
        return f"{parts[-2]}_{parts[-1]}"
    return parts[-1]


class KeywordsStoppingCriteria(StoppingCriteria):
    """Stop a row of a batch once its newly generated text ends with, or contains in its last tokens, a keyword.

    Args:
        keywords: texts to stop at.
        tokenizer: decodes the last tokens.
        input_ids: [batch, length] prompt ids. Output rows that begin with them are read behind them; generation
            from embeddings returns new tokens only, and these are then read from their start.
    """

    def __init__(self, keywords: Sequence[str], tokenizer: Any, input_ids: torch.Tensor) -> None:
        self.keywords = list(keywords)
        self.tokenizer = tokenizer
        self.input_ids = input_ids
        lengths = [len(tokenizer(keyword, add_special_tokens=False).input_ids) for keyword in self.keywords]
        # One token more than the keyword has: it may merge with a neighbour when it is generated.
        self.window = max(lengths, default=0) + 1

    def __call__(self, output_ids: torch.Tensor, scores: Any = None, **kwargs: Any) -> torch.Tensor:
        start = self._prompt_length(output_ids)
        tails = [row[start:][-self.window :] for row in output_ids]
        texts = [self.tokenizer.decode(tail, skip_special_tokens=False) for tail in tails]
        stops = [any(keyword in text for keyword in self.keywords) for text in texts]
        return torch.tensor(stops, dtype=torch.bool, device=output_ids.device)

    def _prompt_length(self, output_ids: torch.Tensor) -> int:
        length = self.input_ids.shape[1]
        prompt = self.input_ids.to(output_ids.device)
        if output_ids.shape[1] < length or output_ids.shape[0] % prompt.shape[0]:
            return 0
        prompt = prompt.repeat_interleave(output_ids.shape[0] // prompt.shape[0], dim=0)
        return length if torch.equal(output_ids[:, :length], prompt) else 0
