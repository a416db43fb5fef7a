"""Pictures to the pixel tensors a vision tower takes: resize, crop, scale, normalise, with PIL and NumPy alone.

The settings are the fields of a Hugging Face `preprocessor_config.json`, and the pixels equal those of the
library's SigLIP and CLIP processors.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from PIL import Image
from transformers import BatchFeature

from llava.errors import InputError

Picture = Image.Image | np.ndarray | torch.Tensor

_FIXED_STEPS = ("do_resize", "do_rescale", "do_normalize")


class TowerImageProcessor:
    """Makes pixel tensors of one size from pictures of any size.

    Args:
        image_mean, image_std: per RGB channel, on the 0..1 scale.
        size: (height, width): resized to exactly that, whatever the picture's shape; or
            `{"shortest_edge": n}`: the shorter side becomes n and the shape is kept.
        crop_size: `{"height", "width"}` cut from the centre after resizing, or None for no crop.
        resample: a PIL resampling filter.
        rescale_factor: what pixel values 0..255 are multiplied with.
    """

    def __init__(
        self,
        image_mean: Sequence[float],
        image_std: Sequence[float],
        size: tuple[int, int] | Mapping[str, int],
        crop_size: Mapping[str, int] | None = None,
        resample: int = Image.Resampling.BICUBIC,
        rescale_factor: float = 1 / 255,
    ) -> None:
        self.image_mean = tuple(image_mean)
        self.image_std = tuple(image_std)
        self.size = dict(size) if isinstance(size, Mapping) else (size[0], size[1])
        self.crop_size = dict(crop_size) if crop_size is not None else None
        self.resample = Image.Resampling(resample)
        self.rescale_factor = rescale_factor

    @classmethod
    def from_config(cls, config: Mapping[str, Any], defaults: TowerImageProcessor) -> TowerImageProcessor:
        """Read the fields of a `preprocessor_config.json`; those it lacks are taken from `defaults`.

        Raises:
            InputError: when a step is switched off that every supported tower needs.
        """
        for step in _FIXED_STEPS:
            if config.get(step, True) is not True:
                raise InputError(f"preprocessor_config.json: {step} {config[step]!r} is not supported; allowed: true.")
        size = _read_size(config["size"], defaults) if config.get("size") is not None else defaults.size
        fixed = None if isinstance(size, dict) else {"height": size[0], "width": size[1]}
        crop = config.get("crop_size") or fixed or defaults.crop_size
        crop = {"height": crop, "width": crop} if isinstance(crop, int) else crop
        return TowerImageProcessor(
            image_mean=config.get("image_mean") or defaults.image_mean,
            image_std=config.get("image_std") or defaults.image_std,
            size=size,
            crop_size=crop if config.get("do_center_crop") is not False else None,
            resample=config.get("resample", defaults.resample),
            rescale_factor=config.get("rescale_factor") or defaults.rescale_factor,
        )

    def to_config(self) -> dict[str, Any]:
        """The fields of a `preprocessor_config.json`, which `from_config` reads back."""
        size = self.size if isinstance(self.size, dict) else {"height": self.size[0], "width": self.size[1]}
        return {
            "image_mean": list(self.image_mean),
            "image_std": list(self.image_std),
            "size": size,
            "crop_size": self.crop_size,
            "do_center_crop": self.crop_size is not None,
            "resample": int(self.resample),
            "rescale_factor": self.rescale_factor,
        }

    def __call__(self, images: Picture | Sequence[Picture], return_tensors: str | None = None) -> BatchFeature:
        return self.preprocess(images, return_tensors=return_tensors)

    def preprocess(self, images: Picture | Sequence[Picture], return_tensors: str | None = None) -> BatchFeature:
        """Process one picture or several.

        Args:
            images: PIL pictures, or uint8 arrays or tensors: colour [height, width, 3] or [3, height, width], grey
                [height, width]; frames may be stacked, [frames, ...] of colour pictures.
            return_tensors: "pt" or "np" for one stacked array; None for a list of arrays.

        Returns:
            `{"pixel_values": float32 [n, 3, height, width]}`.
        """
        single = isinstance(images, Image.Image) or getattr(images, "ndim", None) in (2, 3)
        several: Any = [images] if single else images
        pictures = [self._fitted(_as_rgb(picture)) for picture in several]
        shapes = [(3, picture.height, picture.width) for picture in pictures]
        alike = len(set(shapes)) == 1
        pixels: Any = (
            np.empty((len(shapes), *shapes[0]), np.float32) if alike else [np.empty(s, np.float32) for s in shapes]
        )
        for picture, values in zip(pictures, pixels, strict=True):
            self._normalise(picture, values)
        return BatchFeature({"pixel_values": pixels if return_tensors else list(pixels)}, tensor_type=return_tensors)

    def _fitted(self, picture: Image.Image) -> Image.Image:
        resized = picture.resize(self._resized_size(picture), self.resample)
        if self.crop_size is None:
            return resized
        return _center_crop(resized, self.crop_size["width"], self.crop_size["height"])

    def _normalise(self, picture: Image.Image, values: np.ndarray) -> None:
        """Channel by channel and in place: samples are large, and new memory is slower than arithmetic."""
        channels = np.asarray(picture).transpose(2, 0, 1)
        for channel, mean, std, out in zip(channels, self.image_mean, self.image_std, values, strict=True):
            np.multiply(channel, np.float32(self.rescale_factor), out=out)
            np.subtract(out, np.float32(mean), out=out)
            np.divide(out, np.float32(std), out=out)

    def _resized_size(self, picture: Image.Image) -> tuple[int, int]:
        if not isinstance(self.size, dict):
            return self.size[1], self.size[0]
        short = self.size["shortest_edge"]
        width, height = picture.size
        if width <= height:
            return short, int(short * height / width)
        return int(short * width / height), short


class SigLipImageProcessor(TowerImageProcessor):
    """The processor of the SigLIP so400m tower (384 x 384, mean and deviation one half) unless told otherwise."""

    def __init__(
        self,
        image_mean: Sequence[float] = (0.5, 0.5, 0.5),
        image_std: Sequence[float] = (0.5, 0.5, 0.5),
        size: tuple[int, int] = (384, 384),
        crop_size: Mapping[str, int] | None = None,
        resample: int = Image.Resampling.BICUBIC,
        rescale_factor: float = 1 / 255,
    ) -> None:
        crop_size = {"height": size[0], "width": size[1]} if crop_size is None else crop_size
        super().__init__(image_mean, image_std, size, crop_size, resample, rescale_factor)


def clip_image_processor(image_size: int) -> TowerImageProcessor:
    """The processor of OpenAI's CLIP towers: shorter side to `image_size`, then the centre square."""
    return TowerImageProcessor(
        image_mean=(0.48145466, 0.4578275, 0.40821073),
        image_std=(0.26862954, 0.26130258, 0.27577711),
        size={"shortest_edge": image_size},
        crop_size={"height": image_size, "width": image_size},
    )


def _read_size(size: Any, defaults: TowerImageProcessor) -> tuple[int, int] | dict[str, int]:
    if isinstance(size, int):
        return {"shortest_edge": size} if isinstance(defaults.size, dict) else (size, size)
    if isinstance(size, Mapping):
        if size.get("shortest_edge") is not None:
            return {"shortest_edge": int(size["shortest_edge"])}
        if size.get("height") is not None and size.get("width") is not None:
            return int(size["height"]), int(size["width"])
    elif isinstance(size, Sequence) and len(size) == 2:
        return int(size[0]), int(size[1])
    raise InputError(
        f"preprocessor_config.json: size {size!r} cannot be read; allowed: a number, [height, width], "
        '{"height", "width"} or {"shortest_edge"}.'
    )


def _as_rgb(picture: Picture) -> Image.Image:
    if isinstance(picture, Image.Image):
        return picture.convert("RGB")
    values = picture.numpy(force=True) if isinstance(picture, torch.Tensor) else np.asarray(picture)
    if values.ndim == 3 and values.shape[0] == 3 and values.shape[2] not in (3, 4):
        values = values.transpose(1, 2, 0)
    if values.dtype != np.uint8 or not (values.ndim == 2 or (values.ndim == 3 and values.shape[2] in (3, 4))):
        raise InputError(
            "an image array or tensor must be uint8 [height, width, 3], [3, height, width] or [height, width] (grey), "
            f"but this one is {values.dtype} {list(values.shape)}."
        )
    return Image.fromarray(np.ascontiguousarray(values)).convert("RGB")


def _center_crop(picture: Image.Image, width: int, height: int) -> Image.Image:
    """Cut the centre; a picture smaller than that is set on black, as the libraries do."""
    left, top = (picture.width - width) // 2, (picture.height - height) // 2
    if (left, top) == (0, 0) and picture.size == (width, height):
        return picture
    return picture.crop((left, top, left + width, top + height))
