"""The CLIP tower: hidden states of one layer (`mm_vision_select_layer`), or of several joined on the channels."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from transformers import CLIPVisionModel

from llava.errors import InputError
from llava.model.multimodal_encoder.tower import VisionTower


def _one_layer(count: int, select_layer: int) -> Sequence[int]:
    return [select_layer]


def _every_quarter(count: int, select_layer: int) -> Sequence[int]:
    step = count // 4
    return range(select_layer + step, count, step)


def _five_layers(count: int, select_layer: int) -> Sequence[int]:
    return [-2, -5, -8, -11, 6]


@dataclass(frozen=True)
class SelectFeature:
    """One value of `--mm_vision_select_feature`.

    Attributes:
        layers: (number of hidden states, `mm_vision_select_layer`) -> indices of the layers that are joined.
        joined: how many layers these are.
        class_token: whether the class token stays in front of the patches.
    """

    layers: Callable[[int, int], Sequence[int]]
    joined: int
    class_token: bool


SELECT_FEATURES = {
    "patch": SelectFeature(_one_layer, 1, False),
    "cls_patch": SelectFeature(_one_layer, 1, True),
    "slicefour_patch": SelectFeature(_every_quarter, 4, False),
    "slicefour_cls_patch": SelectFeature(_every_quarter, 4, True),
    "slice_m25811_f6_patch": SelectFeature(_five_layers, 5, False),
    "slice_m25811_f6_cls_patch": SelectFeature(_five_layers, 5, True),
}


class _ClipBody(CLIPVisionModel):
    """A class of our own keeps the library from renaming the weights when it loads and saves."""


class CLIPVisionTower(VisionTower):
    """See `VisionTower`; the features are [n, patches (and class token), width times joined layers]."""

    family = "clip"

    def __init__(self, vision_tower: str, args: Any, delay_load: bool = False, in_checkpoint: bool = False) -> None:
        self.select(args)
        super().__init__(vision_tower, args, delay_load, in_checkpoint)

    def select(self, args: Any) -> None:
        """Take `mm_vision_select_layer` and `mm_vision_select_feature` from a config or arguments."""
        feature = getattr(args, "mm_vision_select_feature", "patch")
        if feature not in SELECT_FEATURES:
            raise InputError(
                f"--mm_vision_select_feature {feature!r} is not supported; allowed: {', '.join(SELECT_FEATURES)}."
            )
        self.select_layer = getattr(args, "mm_vision_select_layer", -1)
        self.select_feature = feature

    def build(self, attn_implementation: str | None) -> nn.Module:
        config: Any = copy.deepcopy(self.spec.vision_config)
        config._attn_implementation = attn_implementation
        body = _ClipBody(config)
        # Transformers before 5.4 or so keep the transformer one level further down.
        return getattr(body, "vision_model", body)

    def encode(self, images: torch.Tensor) -> torch.Tensor:
        hidden = self.vision_tower.vision_model(images, output_hidden_states=True).hidden_states
        choice = SELECT_FEATURES[self.select_feature]
        try:
            layers = [hidden[index] for index in choice.layers(len(hidden), self.select_layer)]
        except IndexError:
            raise InputError(
                f"--mm_vision_select_layer {self.select_layer} with {self.select_feature}: the tower has "
                f"{len(hidden) - 1} layers; allowed: {-len(hidden)} to {len(hidden) - 1}."
            ) from None
        features = torch.cat(layers, dim=-1)
        return features if choice.class_token else features[:, 1:]

    @property
    def hidden_size(self) -> int:
        return self.config.hidden_size * SELECT_FEATURES[self.select_feature].joined

    @property
    def num_patches(self) -> int:
        return self.num_patches_per_side**2 + SELECT_FEATURES[self.select_feature].class_token
