"""Samples to a batch: cut to the tokenizer's `model_max_length`, pad, and line up the images with their marks."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from llava.constants import IGNORE_INDEX, IMAGE_TOKEN_INDEX
from llava.errors import InputError
from llava.samples.batch import Batch
from llava.samples.media import Entry, dummy_entry, tiles_of

Item = dict[str, Any]


@dataclass
class DataCollatorForSupervisedDataset:
    """Make batches of the items of `LazySupervisedDataset`; the tokenizer gives length limit, pad id and side.

    With `find_features`, of tiles [n, 3, S, S], batches bring along what is known of their images (`features`; None
    where nothing is): then it is read where samples are made, in the data loader's processes.
    """

    tokenizer: Any
    find_features: Callable[[torch.Tensor], torch.Tensor | None] | None = None

    def __call__(self, instances: Sequence[Item]) -> Batch:
        """Collate.

        Args:
            instances: items with `input_ids` and `labels` (1-d long), perhaps `image` (list of entries) and `id`.

        Returns:
            `input_ids`, `labels` long [batch, length]; `attention_mask` bool, true for every real token, whatever its
            id; and, if any sample has images, `images`, `image_sizes`, `modalities`: flat lists over the batch.

        Raises:
            InputError: a sample with more marks than images, or a batch without any label.
        """
        limit = self.tokenizer.model_max_length
        ids = [instance["input_ids"][:limit] for instance in instances]
        labels = [instance["labels"][:limit] for instance in instances]
        _check_labels(instances, labels, limit)
        pad = self.tokenizer.pad_token_id
        batch = Batch(
            input_ids=self._pad(ids, 0 if pad is None else pad),
            labels=self._pad(labels, IGNORE_INDEX),
            attention_mask=self._pad([torch.ones(len(row), dtype=torch.bool) for row in ids], False),
        )
        if any(instance.get("image") for instance in instances):
            entries = _entries(instances, ids)
            batch["images"] = [pixels for pixels, _, _ in entries]
            batch["image_sizes"] = [size for _, size, _ in entries]
            batch["modalities"] = [modality for _, _, modality in entries]
            if self.find_features is not None:
                batch["features"] = [self.find_features(tiles_of(pixels)) for pixels, _, _ in entries]
        return batch

    def _pad(self, rows: list[torch.Tensor], value: int | bool) -> torch.Tensor:
        longest = max(len(row) for row in rows)
        left = self.tokenizer.padding_side == "left"
        missing = [longest - len(row) for row in rows]
        amounts = [(count, 0) if left else (0, count) for count in missing]
        padded = [torch.nn.functional.pad(row, amount, value=value) for row, amount in zip(rows, amounts, strict=True)]
        return torch.stack(padded)


def _check_labels(instances: Sequence[Item], labels: list[torch.Tensor], limit: int) -> None:
    if all(bool((row == IGNORE_INDEX).all()) for row in labels):
        names = ", ".join(repr(instance.get("id", "?")) for instance in instances)
        raise InputError(
            f"no token of this batch is supervised, its loss would be undefined; samples: {names}; they have no "
            f"answer, or --model_max_length {limit} cuts it off (--skip_bad_samples True leaves such samples out)"
        )


def _entries(instances: Sequence[Item], ids: list[torch.Tensor]) -> list[Entry]:
    """Entries of all samples: one for each mark that is left, or one dummy for a sample without marks."""
    side = next(instance["image"][0][0].shape[-1] for instance in instances if instance.get("image"))
    entries: list[Entry] = []
    for instance, row in zip(instances, ids, strict=True):
        own = instance.get("image") or [dummy_entry(side)]
        marks = int((row == IMAGE_TOKEN_INDEX).sum())
        if marks > len(own):
            raise InputError(f"sample {instance.get('id', '?')!r} has {marks} <image> marks, but {len(own)} images")
        entries += own[:marks] if marks else _without_marks(instance, own, side)
    return entries


def _without_marks(instance: Item, own: list[Entry], side: int) -> list[Entry]:
    """A dummy: the sample's own if it is text only, a new one if all its marks were cut off."""
    had_marks = bool((instance["input_ids"] == IMAGE_TOKEN_INDEX).any())
    return [dummy_entry(side)] if had_marks else own[:1]
