"""What a zeroth-order step gives the engine of a batch: tensors alone, what frozen modules make of it among them.

For models that lay batches out (`geometry`, see `llava/model/layout.py`). Then a forward never waits for a GPU, and is
recorded as a CUDA graph; so is what runs once a batch: the vision modules and the first layers, as far as they are
frozen.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from itertools import takewhile
from typing import Any, Protocol

import torch

from llava.mezo import MeZO
from llava.mezo.inference import evaluation_mode
from llava.train.zo.image_modules import frozen_image_modules, is_frozen

logger = logging.getLogger(__name__)

Tensors = dict[str, torch.Tensor]


class KnownFeatures(Protocol):
    """Features of tiles that were encoded before."""

    def find(self, tiles: torch.Tensor) -> torch.Tensor | None:
        """Those of tiles [n, 3, S, S], or None."""

    def keep(self, tiles: torch.Tensor, features: torch.Tensor) -> None:
        """Remember them."""


class StepInputs:
    """Turns what the collator gives, on the CPU, into the tensors of a model's `laid_out_states`.

    Args:
        bucket: rows are padded to a multiple of so many tokens where graphs are recorded, so that there are few shapes.
        known: asked for the features of images that the batch does not bring with it.
    """

    def __init__(self, model: Any, mezo: MeZO, bucket: int, known: KnownFeatures | None = None) -> None:
        self.model = model
        self.mezo = mezo
        self.bucket = bucket if mezo.device.type == "cuda" else 1
        self.known = known
        self.frozen = len(frozen_image_modules(model))
        self.begun = frozen_beginning(model)
        """How many layers the tensors are behind: for `laid_out_states`."""
        self.hits = self.misses = 0
        """Tiles whose features were known, and others."""
        self._told = False

    @torch.no_grad()
    def __call__(self, batch: Mapping[str, Any]) -> Tensors | None:
        """The tensors, on any device; None for a batch that only the model's own forward can put together."""
        with self.mezo.plain():
            tensors = self._tensors_of(batch)
            return self._begin(tensors) if tensors is not None and self.begun else tensors

    def _tensors_of(self, batch: Mapping[str, Any]) -> Tensors | None:
        layout = self.model.geometry.lay_out(batch, self.bucket)
        tensors: Tensors = layout.tensors()
        if not layout.images:
            return tensors
        entries = [batch["images"][image.number] for image in layout.images]
        pixels = [entry[None] if entry.ndim == 3 else entry for entry in entries]
        frozen = self.frozen
        merged = any(image.merged for image in layout.images)
        if merged and frozen < 2:
            self._tell()
            return None
        if frozen == 0:
            return tensors | {"images": torch.cat(pixels)}
        brought = batch.get("features") or [None] * len(batch["images"])
        features = self._features(pixels, [brought[image.number] for image in layout.images], frozen)
        if frozen == 1:
            return tensors | {"tower_features": torch.cat(features)}
        vectors = [
            self.model.merged_tokens(own, image.size, image.kind) if image.merged else own.flatten(0, 1)
            for image, own in zip(layout.images, features, strict=True)
        ]
        return tensors | {"vectors": torch.cat(vectors)}

    def _begin(self, tensors: Tensors) -> Tensors:
        """The first layers' states in place of what they are made of."""
        needed: Tensors = {name: tensors.pop(name) for name in ("words", "source", "vectors") if name in tensors}
        return tensors | {"states": self.mezo.run_recorded(self._first_layers, self._first_layers, needed)}

    def _first_layers(self, tensors: Mapping[str, torch.Tensor]) -> torch.Tensor:
        with evaluation_mode(self.model):
            states: torch.Tensor = self.model.laid_out_beginning(tensors, self.begun)
        return states

    def _features(
        self, pixels: list[torch.Tensor], brought: list[torch.Tensor | None], frozen: int
    ) -> list[torch.Tensor]:
        """What the first `frozen` modules make of each image."""
        missing = [k for k, features in enumerate(brought) if features is None]
        computed: dict[int, torch.Tensor] = {}
        if missing:
            encode = self._encode_images if frozen == 2 else self._run_tower
            tiles = torch.cat([pixels[k] for k in missing]) if len(missing) > 1 else pixels[missing[0]]
            together = self.mezo.run_recorded(encode, encode, {"images": tiles})
            computed = dict(zip(missing, together.split([len(pixels[k]) for k in missing]), strict=True))
        if self.known is not None:
            for k in missing:
                self.known.keep(pixels[k], computed[k])
        self.misses += sum(len(pixels[k]) for k in missing)
        self.hits += sum(len(own) for own in brought if own is not None)
        device = self.mezo.device
        return [computed[k] if own is None else own.to(device, non_blocking=True) for k, own in enumerate(brought)]

    def _encode_images(self, tensors: Mapping[str, torch.Tensor]) -> torch.Tensor:
        return self._evaluated(self.model.encode_images, tensors)

    def _run_tower(self, tensors: Mapping[str, torch.Tensor]) -> torch.Tensor:
        return self._evaluated(self.model.get_vision_tower(), tensors)

    def _evaluated(self, function: Callable[[torch.Tensor], torch.Tensor], tensors: Mapping[str, torch.Tensor]) -> Any:
        with evaluation_mode(self.model.get_vision_tower()), evaluation_mode(self.model.get_model().mm_projector):
            return function(tensors["images"])

    def _tell(self) -> None:
        if not self._told:
            self._told = True
            logger.info("videos and images that are resized run without a layout where the projector is trained")


def frozen_beginning(model: Any) -> int:
    """How many decoder layers of a LLaVA model, from the first on, are frozen with all that comes before them."""
    inner = model.get_model()
    layers = list(inner.layers)
    after = {id(p) for module in (*layers, inner.norm) for p in module.parameters()}
    if any(p.requires_grad for p in inner.parameters() if id(p) not in after):
        return 0
    return len(list(takewhile(is_frozen, layers)))
