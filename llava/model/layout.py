"""Where text, visual tokens and padding of a batch lie, worked out on the host.

Splicing images into the text (`splicing.py`) asks the device how long things are, again and again. All of it follows
from ids, sizes and settings, which the host has: here it becomes indices, and on the device one gather puts the batch
together. So a forward neither waits for the device nor depends on more than tensors, and can be recorded as a CUDA
graph.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from llava.constants import IGNORE_INDEX, IMAGE_TOKEN_INDEX
from llava.errors import InputError
from llava.model.merge_plan import MergePlan
from llava.model.merging import merge_entry
from llava.model.splicing import cut_rows, images_per_row, modality_of_each

Numbers = npt.NDArray[np.int64]

MOST_KNOWN = 1024
"""Sizes of images whose indices are remembered, tens of KB each."""


@dataclass(frozen=True)
class ShownImage:
    """An image, or a video, that the text has a mark for.

    Attributes:
        number: its place in the batch.
        size, kind: (width, height) of the original, and "image" or "video".
        index: int64 [tokens], which of its vectors each of its tokens is; or NEWLINE, FASTER.
        vectors: how many it has: the features of its tiles or, if they are `merged`, its tokens.
        merged: its features are resized or pooled, so that they have to be merged before the batch is put together.
    """

    number: int
    size: Sequence[int] | None
    kind: str
    index: Numbers
    vectors: int
    merged: bool


@dataclass(frozen=True)
class Layout:
    """A batch as indices into vectors: word embeddings, vectors of the images, newline, faster token, zeros.

    Attributes:
        words: long [words], ids of the text tokens, then zeros.
        source: long [rows, length], which vector each position takes.
        positions: long [n], row * length + column of each state that predicts a supervised token.
        targets: long [n], that token; -100 where there is none.
        images: those that are shown, in the order of their vectors.
    """

    words: torch.Tensor
    source: torch.Tensor
    positions: torch.Tensor
    targets: torch.Tensor
    images: tuple[ShownImage, ...]

    def tensors(self) -> dict[str, torch.Tensor]:
        """What a forward needs of it."""
        return {name: getattr(self, name) for name in ("words", "source", "positions", "targets")}


@dataclass(frozen=True)
class Geometry:
    """How a model turns ids and images into a sequence.

    Attributes:
        plan: how features are merged.
        patches: features of a tile.
        tile_size: side of a tile in pixels.
        limit: longest row in tokens; None for any.
        vocabulary: rows of the embedding.
    """

    plan: MergePlan
    patches: int
    tile_size: int
    limit: int | None
    vocabulary: int
    _known: dict[Any, tuple[Numbers, bool]] = field(default_factory=dict, repr=False, compare=False)

    def lay_out(self, batch: Mapping[str, Any], bucket: int = 1) -> Layout:
        """The layout of what the collator gives: ids, labels and mask [rows, length], images, sizes, modalities.

        Args:
            bucket: rows are padded on the right to a multiple of so many tokens, and supervised positions likewise.

        Raises:
            InputError: images and marks do not match, or an id is not in the vocabulary.
        """
        ids, labels = batch["input_ids"].numpy(), batch["labels"].numpy()
        mask = batch.get("attention_mask")
        keep = np.ones(ids.shape, dtype=bool) if mask is None else mask.bool().numpy()
        rows = [row[kept] for row, kept in zip(ids, keep, strict=True)]
        words = np.concatenate([row[row != IMAGE_TOKEN_INDEX] for row in rows])
        self._check_words(words)
        images = self._images(batch, [int((row == IMAGE_TOKEN_INDEX).sum()) for row in rows])
        row_labels = [row[kept] for row, kept in zip(labels, keep, strict=True)]
        sources, row_labels = cut_rows(*_spliced(rows, row_labels, images), self.limit)

        length = _round_up(max(map(len, sources)), bucket)
        target: Numbers
        source, target = np.full((len(rows), length), ZERO), np.full((len(rows), length + 1), IGNORE_INDEX)
        for k, (own, label) in enumerate(zip(sources, row_labels, strict=True)):
            source[k, : len(own)] = own
            target[k, : len(label)] = label
        target = target[:, 1:].ravel()
        (positions,) = np.nonzero(target != IGNORE_INDEX)
        supervised = _round_up(len(positions), bucket)
        # with a bucket their number must not add another size to the shapes that graphs are recorded for
        count = len(words) if bucket == 1 else max(len(rows) * length, _round_up(len(words), bucket))
        shown = tuple(image for of_row in images for image in of_row)
        return Layout(
            words=_padded(words, count, 0),
            source=torch.from_numpy(_placed(source, count, sum(image.vectors for image in shown))),
            positions=_padded(positions, supervised, 0),
            targets=_padded(target[positions], supervised, IGNORE_INDEX),
            images=shown,
        )

    def _check_words(self, words: Numbers) -> None:
        wrong = words[(words < 0) | (words >= self.vocabulary)]
        if len(wrong):
            raise InputError(
                f"token id {int(wrong[0])} is not among the {self.vocabulary} that the model has embeddings for: the "
                "tokenizer is another model's"
            )

    def _images(self, batch: Mapping[str, Any], marks: Sequence[int]) -> list[list[ShownImage]]:
        """For each row the images that it shows; dummies are not among them."""
        entries = batch.get("images")
        if entries is None:
            if any(marks):
                raise InputError("the text has <image> marks, but no images were given.")
            return [[] for _ in marks]
        tiles = [1 if entry.ndim == 3 else len(entry) for entry in entries]
        sizes = batch.get("image_sizes") or [None] * len(tiles)
        kinds = modality_of_each(batch.get("modalities"), len(tiles), len(marks))
        owners = images_per_row(marks, len(tiles))
        return [
            [self._shown(k, tiles[k], sizes[k], kinds[k]) for k in range(first, first + count)]
            for (first, _), count in zip(owners, marks, strict=True)
        ]

    def _shown(self, number: int, tiles: int, size: Sequence[int] | None, kind: str) -> ShownImage:
        known = tiles, None if size is None else tuple(size), kind
        if known not in self._known:
            if len(self._known) >= MOST_KNOWN:
                self._known.clear()
            self._known[known] = self._index(*known)
        index, merged = self._known[known]
        return ShownImage(number, size, kind, index, len(index) if merged else tiles * self.patches, merged)

    def _index(self, tiles: int, size: tuple[int, ...] | None, kind: str) -> tuple[Numbers, bool]:
        """Index of an image's tokens, and whether its features must be merged before.

        The features' numbers are merged as the features would be. Where that calculates, integers are refused; then the
        tokens are what is counted, and learned ones are told by merging zeros.
        """
        numbers = torch.arange(tiles * self.patches).view(tiles, self.patches, 1)
        learned = torch.tensor([NEWLINE]), torch.tensor([FASTER])
        if not self.plan.calculates(kind):
            try:
                return merge_entry(numbers, self.plan, size, self.tile_size, kind, *learned).flatten().numpy(), False
            except NotImplementedError:  # torch does not interpolate between integers
                pass
        zeros = torch.zeros(tiles, self.patches, 1)
        merged = merge_entry(zeros, self.plan, size, self.tile_size, kind, *(token.float() for token in learned))
        kinds = merged.flatten().long().numpy()
        return np.where(kinds == 0, np.arange(len(kinds)), kinds), True


ZERO, FASTER, NEWLINE = -3, -2, -1
"""Stand for the vectors behind those of the images, until it is known how many there are."""
_OF_IMAGES = 2**40
"""Where the vectors of images begin until then."""


def _spliced(
    rows: Sequence[Numbers], labels: Sequence[Numbers], images: Sequence[Sequence[ShownImage]]
) -> tuple[list[Numbers], list[Numbers]]:
    """Source and labels [length] of each row."""
    sources, spliced_labels = [], []
    word, vector = 0, _OF_IMAGES
    for row, label, own in zip(rows, labels, images, strict=True):
        parts, label_parts, start = [], [], 0
        for mark, image in zip(np.nonzero(row == IMAGE_TOKEN_INDEX)[0], own, strict=True):
            tokens = np.where(image.index < 0, image.index, image.index + vector)
            parts += [np.arange(word, word + mark - start), tokens]
            label_parts += [label[start:mark], np.full(len(tokens), IGNORE_INDEX)]
            word, vector, start = word + mark - start, vector + image.vectors, mark + 1
        parts.append(np.arange(word, word + len(row) - start))
        label_parts.append(label[start:])
        word += len(row) - start
        sources.append(np.concatenate(parts))
        spliced_labels.append(np.concatenate(label_parts))
    return sources, spliced_labels


def _placed(source: Numbers, words: int, vectors: int) -> Numbers:
    """The source, once it is known how many words and vectors of images there are."""
    placed = np.where(source >= _OF_IMAGES, source - _OF_IMAGES + words, source)
    return np.where(source < 0, words + vectors + NEWLINE - source, placed)


def _padded(values: Numbers, length: int, value: int) -> torch.Tensor:
    padded = np.full(length, value, dtype=np.int64)
    padded[: len(values)] = values
    return torch.from_numpy(padded)


def _round_up(count: int, granule: int) -> int:
    return -(-count // granule) * granule
