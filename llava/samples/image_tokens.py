"""How many tokens an image becomes in the language model, known without running the vision tower.

`data_args.count_image_tokens = ImageTokenCounter.of_tower(config, tower)` lets the data set refuse samples whose
answers lie behind `--model_max_length` once the images are spliced in.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

from llava.model.merge_plan import MergePlan
from llava.model.merging import merge_entry


@dataclass(frozen=True)
class ImageTokenCounter:
    """Count by merging features of one channel, as the model merges its own.

    Attributes:
        plan: how the model merges features.
        patches: features of a tile.
        tile_size: side of a tile in pixels.
    """

    plan: MergePlan
    patches: int
    tile_size: int

    @classmethod
    def of_tower(cls, config: Any, tower: Any) -> ImageTokenCounter:
        """The counter of a model with this config and vision tower; neither needs weights."""
        return cls(MergePlan.from_config(config), tower.num_patches, tower.image_size)

    def __call__(self, pixels: torch.Tensor, size: tuple[int, int], modality: str) -> int:
        """Tokens of one entry: pixels [3, S, S] or [tiles, 3, S, S], (width, height) of the original, modality."""
        tiles = 1 if pixels.ndim == 3 else len(pixels)
        features = torch.zeros(tiles, self.patches, 1)
        newline = torch.zeros(1)
        return len(merge_entry(features, self.plan, size, self.tile_size, modality, newline, newline))
