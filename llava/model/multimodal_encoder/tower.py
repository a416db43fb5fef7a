"""What the SigLIP and CLIP towers share: build from a config, load weights once, encode pixels.

The transformer itself is the library's vision model. It sits at `vision_tower.vision_model`, since that is how
LLaVA checkpoints spell the names of its weights.
"""

from __future__ import annotations

import logging
import re
from typing import Any, ClassVar

import torch
from torch import nn
from transformers import PretrainedConfig

from llava.errors import InputError
from llava.model.checkpoint_files import read_tensors, usable, weight_files
from llava.model.multimodal_encoder.image_processor import TowerImageProcessor
from llava.model.multimodal_encoder.tower_config import SUPPORTED_TOWERS, describe_tower

logger = logging.getLogger(__name__)

# In files of the library's own vision models the names may or may not begin with this level.
_LEVEL = "vision_model."


def loads_at_once(model_config: Any, delay_load: bool) -> bool:
    """Whether a tower reads its own weights when it is made: unless delayed, and always when it is to be trained."""
    parts = str(getattr(model_config, "mm_tunable_parts", None) or "").split(",")
    trained = getattr(model_config, "unfreeze_mm_vision_tower", False) or "mm_vision_tower" in map(str.strip, parts)
    return bool(trained) or not delay_load


class VisionTower(nn.Module):
    """Pixels [n, 3, S, S] to features [n, patches, hidden_size].

    Args:
        vision_tower: hub id or folder.
        vision_tower_cfg: model config or arguments with the `mm_vision_*` fields.
        delay_load: build the architecture with random weights, which `load_model()` or a state dict replaces; not
            for a tower that is to be trained (`loads_at_once`).
        in_checkpoint: the weights come with a checkpoint that is being loaded; nothing is read here in any case.
    """

    family: ClassVar[str]

    def __init__(
        self, vision_tower: str, vision_tower_cfg: Any, delay_load: bool = False, in_checkpoint: bool = False
    ) -> None:
        super().__init__()
        self.vision_tower_name = vision_tower
        self.spec = describe_tower(vision_tower, vision_tower_cfg)
        if self.spec.family != self.family:
            raise InputError(f"vision tower {vision_tower!r} is of the {self.spec.family} family, not {self.family}.")
        self.is_loaded = False
        self._warned = False
        self.vision_tower: Any = nn.Module()
        with usable(f"vision tower {vision_tower!r}: its config"):
            self.vision_tower.vision_model = self.build(getattr(vision_tower_cfg, "_attn_implementation", None))
        if not in_checkpoint and loads_at_once(vision_tower_cfg, delay_load):
            self.load_model()

    def build(self, attn_implementation: str | None) -> nn.Module:
        """The library's vision model, with random weights."""
        raise NotImplementedError

    def encode(self, images: torch.Tensor) -> torch.Tensor:
        """Features of a batch of pixels that are in the tower's dtype and on its device."""
        raise NotImplementedError

    def load_model(self, device_map: Any = None) -> None:
        """Read the tower's own weights, once. They keep the dtype and device that the tower has.

        Raises:
            InputError: when the weights cannot be found, or do not fit the config.
        """
        if self.is_loaded:
            return
        files = weight_files(self.spec.source)
        if not files:
            raise InputError(
                f"vision tower {self.vision_tower_name!r}: no weights found (no such folder or hub model, or no "
                f"network). Supported: {SUPPORTED_TOWERS}; set --vision_tower."
            )
        body = self.vision_tower.vision_model
        weights: dict[str, torch.Tensor] = {}
        wanted = set(body.state_dict())
        for path in files:
            found = read_tensors(path, lambda name: _inner_name(name) in wanted)
            weights.update({_inner_name(name): tensor for name, tensor in found.items()})
        missing = sorted(wanted - set(weights))
        if missing:
            raise InputError(f"vision tower {self.vision_tower_name!r}: its weight file lacks {', '.join(missing)}.")
        try:
            body.load_state_dict(weights)
        except RuntimeError as error:
            raise InputError(
                f"vision tower {self.vision_tower_name!r}: weights do not fit its config: {error}"
            ) from error
        self.requires_grad_(False)
        self.is_loaded = True
        logger.info("loaded vision tower %s", self.vision_tower_name)

    def forward(self, images: torch.Tensor | list[torch.Tensor]) -> torch.Tensor | list[torch.Tensor]:
        """Features of pixels [n, 3, S, S], or of each entry [3, S, S] of a list as [1, patches, hidden_size]."""
        if isinstance(images, list):
            forward: Any = self.forward
            return [forward(image.unsqueeze(0)) for image in images]
        if tuple(images.shape[-2:]) != (self.image_size, self.image_size):
            raise InputError(
                f"vision tower {self.vision_tower_name!r} takes {self.image_size} x {self.image_size} pixels, but got "
                f"{list(images.shape)}: process images with this tower's image_processor."
            )
        if not (self.is_loaded or self._warned):
            self._warned = True
            logger.warning(
                "vision tower %s has random weights: load a checkpoint, or its own weights with load_model()",
                self.vision_tower_name,
            )
        # checkpointed layers that nothing is differentiated through would keep their inputs all the same
        differentiated = images.requires_grad or any(parameter.requires_grad for parameter in self.parameters())
        with torch.set_grad_enabled(differentiated and torch.is_grad_enabled()):
            return self.encode(images.to(device=self.device, dtype=self.dtype))

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any) -> None:
        """Torch's hook for `load_state_dict`: takes names without the inner level too, and notes a complete load."""
        body = f"{prefix}vision_tower."
        for name in [name for name in state_dict if name.startswith(body)]:
            if not name.startswith(body + _LEVEL):
                state_dict[body + _LEVEL + name.removeprefix(body)] = state_dict.pop(name)
        super()._load_from_state_dict(state_dict, prefix, *args)
        if all(prefix + name in state_dict for name in self.state_dict()):
            self.is_loaded = True

    @property
    def image_processor(self) -> TowerImageProcessor:
        return self.spec.image_processor

    @property
    def config(self) -> PretrainedConfig:
        """The full vision config; its depth counts layers that LLaVA drops."""
        return self.spec.vision_config

    @property
    def dtype(self) -> torch.dtype:
        return self.vision_tower.vision_model.embeddings.patch_embedding.weight.dtype

    @property
    def device(self) -> torch.device:
        return self.vision_tower.vision_model.embeddings.patch_embedding.weight.device

    @property
    def hidden_size(self) -> int:
        return self.config.hidden_size

    @property
    def image_size(self) -> int:
        return self.config.image_size

    @property
    def num_patches_per_side(self) -> int:
        return self.config.image_size // self.config.patch_size

    @property
    def num_patches(self) -> int:
        return self.num_patches_per_side**2

    @property
    def dummy_feature(self) -> torch.Tensor:
        return torch.zeros(1, self.hidden_size, device=self.device, dtype=self.dtype)


def _inner_name(name: str) -> str:
    return re.sub(rf"^(?:.*\.)?{re.escape(_LEVEL)}", "", name)
