"""The modules that make a language model see: tower, projector and learned separator tokens."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from llava.model import loading
from llava.model.merge_plan import MergePlan
from llava.model.multimodal_encoder.builder import build_vision_tower
from llava.model.multimodal_encoder.tower import VisionTower
from llava.model.multimodal_projector.builder import build_vision_projector
from llava.model.multimodal_resampler.builder import build_vision_resampler
from llava.model.vision_settings import copy_settings

if TYPE_CHECKING:
    from transformers import PreTrainedModel as _Base
else:
    _Base = object  # a language model without head comes behind the mixin


class LlavaMetaModel(_Base):
    """Adds `vision_tower`, `mm_projector`, `image_newline` and `faster_token` to a language model without head."""

    def __init__(self, config: Any) -> None:
        super().__init__(config)
        if getattr(config, "mm_vision_tower", None) is None:
            return
        build_vision_resampler(config)
        self.vision_tower = build_vision_tower(config, in_checkpoint=True)
        self.vision_tower.spec.remember(config)
        if getattr(config, "mm_hidden_size", None) is None:
            config.mm_hidden_size = self.vision_tower.hidden_size
        self.mm_projector = build_vision_projector(config)
        self._add_learned_tokens()

    def get_vision_tower(self) -> VisionTower | None:
        tower = getattr(self, "vision_tower", None)
        return tower[0] if isinstance(tower, list) else tower

    def initialize_vision_modules(self, model_args: Any, fsdp: Any = None) -> None:
        """Make a language model see: tower with its own weights, projector, newline; settings into the config.

        Modules that exist already, from a LLaVA checkpoint, stay as they are.

        Args:
            model_args: the vision fields of `ModelArguments`; missing ones take their defaults.
            fsdp: accepted for compatibility.

        Raises:
            InputError: for a tower, projector or resampler that is not supported.
        """
        build_vision_resampler(model_args)
        tower, projector = self.get_vision_tower(), getattr(self, "mm_projector", None)
        copy_settings(model_args, self.config, keep_tower=tower is not None, keep_projector=projector is not None)
        if tower is None:
            self.vision_tower = tower = build_vision_tower(self.config)
            tower.spec.remember(self.config)
            tower.to(device=self.device, dtype=self.dtype)
        else:
            tower.load_model()
        self.config.mm_hidden_size = tower.hidden_size
        if projector is None:
            # In float32 also in a half precision run: a freshly made projector is trained at full precision.
            self.mm_projector = build_vision_projector(self.config).to(self.device)
        self.mm_projector.requires_grad_(True)
        self._add_learned_tokens()
        adapter = getattr(model_args, "pretrain_mm_mlp_adapter", None)
        if adapter is not None:
            loading.load_adapter(self, adapter)

    def _add_learned_tokens(self) -> None:
        """Create `image_newline` and `faster_token` where the config needs them and they are not there yet."""
        plan = MergePlan.from_config(self.config)
        wanted = {"image_newline": plan.unpad, "faster_token": plan.faster_stride is not None}
        for name, needed in wanted.items():
            if needed and getattr(self, name, None) is None:
                token = torch.empty(self.config.hidden_size, dtype=self.dtype, device=self.device)
                setattr(self, name, nn.Parameter(token))
                _reset_learned_token(getattr(self, name))

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        super()._init_weights(module)
        if module is self:
            for name in loading.LEARNED_TOKENS:
                token = getattr(self, name, None)
                if token is not None and not getattr(token, "_is_hf_initialized", False):
                    _reset_learned_token(token)


@torch.no_grad()
def _reset_learned_token(token: nn.Parameter) -> None:
    """Standard normal over the root of the width; the same numbers every time."""
    if token.device.type != "meta":
        values = torch.randn(token.shape, generator=torch.Generator().manual_seed(0), device="cpu")
        token.copy_(values / math.sqrt(len(token)))
