"""Put visual tokens into the text: rows of ids with `<image>` marks (-200) to padded embeddings.

A batch comes as padded ids and leaves as embeddings that are padded anew, since images differ in their number of
tokens. A row of plain text uses up one entry of the images (its dummy) whenever the batch brings dummies along.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import torch

from llava.constants import IGNORE_INDEX, IMAGE_TOKEN_INDEX
from llava.errors import InputError

logger = logging.getLogger(__name__)

Row = TypeVar("Row", bound=Any)
PADDING_SIDES = ("right", "left")
MODALITIES = ("image", "video", "text")


@dataclass(frozen=True)
class SplicedBatch:
    """Rows padded to one length.

    Attributes:
        embeds: [rows, length, hidden]; zeros where padded.
        labels: [rows, length]; -100 on visual tokens and padding.
        mask: bool [rows, length].
        position_ids: long [rows, length]; from 0 in each row, 0 where padded.
    """

    embeds: torch.Tensor
    labels: torch.Tensor
    mask: torch.Tensor
    position_ids: torch.Tensor


def count_marks(rows: Sequence[torch.Tensor]) -> list[int]:
    """Number of `<image>` marks of each row of ids."""
    return [int((row == IMAGE_TOKEN_INDEX).sum()) for row in rows]


def images_per_row(marks: Sequence[int], images: int) -> list[tuple[int, int]]:
    """Which images belong to each row, as (first, end); a dummy belongs to its row and is not used.

    Raises:
        InputError: when the images are neither as many as the marks, nor as many as marks and text rows together.
    """
    with_dummies = [max(count, 1) for count in marks]
    per_row = with_dummies if images == sum(with_dummies) else list(marks)
    if images != sum(per_row):
        raise InputError(
            f"the batch has {images} images, but its text has {sum(marks)} <image> marks (per row: {list(marks)}): "
            "give one image per mark, and either none or one dummy for each row without a mark."
        )
    ends = torch.tensor(per_row).cumsum(0).tolist()
    return [(end - count, end) for end, count in zip(ends, per_row, strict=True)]


def modality_of_each(modalities: Sequence[str] | str | None, images: int, rows: int) -> list[str]:
    """What each image is, "image", "video" or "text" (a dummy); None or one string holds for all."""
    # ["image"] is the default of LLaVA-NeXT, which callers pass on whatever the number of images in their one row.
    if rows == 1 and modalities is not None and list(modalities) == ["image"]:
        modalities = "image"
    kinds = [modalities or "image"] * images if modalities is None or isinstance(modalities, str) else list(modalities)
    if len(kinds) != images:
        raise InputError(f"modalities has {len(kinds)} entries for {images} images: give one for each.")
    unknown = [kind for kind in kinds if kind not in MODALITIES]
    if unknown:
        raise InputError(f"modality {unknown[0]!r} is not supported; allowed: {', '.join(MODALITIES)}.")
    return kinds


def splice_rows(
    rows: Sequence[torch.Tensor],
    labels: Sequence[torch.Tensor],
    features: Sequence[torch.Tensor],
    embed: Callable[[torch.Tensor], torch.Tensor],
) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
    """Replace each mark by the next image's tokens.

    Args:
        rows: ids [length] of each row, without padding.
        labels: labels [length] of each row.
        features: [tokens, hidden] of each image, see `images_per_row`.
        embed: ids [n] to embeddings [n, hidden]; called once for the whole batch.

    Returns:
        Embeddings [length, hidden] and labels [length] of each row.
    """
    owners = images_per_row(count_marks(rows), len(features)) if features else [(0, 0)] * len(rows)
    texts = [row[row != IMAGE_TOKEN_INDEX] for row in rows]
    embedded = embed(torch.cat(texts)).split([len(text) for text in texts])
    spliced = [
        _splice_row(row, label, text, features[first:end])
        for row, label, text, (first, end) in zip(rows, labels, embedded, owners, strict=True)
    ]
    return [embeds for embeds, _ in spliced], [label for _, label in spliced]


def _splice_row(
    row: torch.Tensor, labels: torch.Tensor, text: torch.Tensor, features: Sequence[torch.Tensor]
) -> tuple[torch.Tensor, torch.Tensor]:
    marks = (row == IMAGE_TOKEN_INDEX).nonzero().flatten().tolist()
    if not marks:
        # The empty slice keeps a dummy's tower and projector in the graph, as distributed training expects.
        return torch.cat([text, *(feature[:0].to(text) for feature in features)]), labels
    parts, label_parts = [], []
    start = 0
    for order, (mark, feature) in enumerate(zip(marks, features, strict=True)):
        parts += [text[start - order : mark - order], feature.to(text)]
        label_parts += [labels[start:mark], labels.new_full((len(feature),), IGNORE_INDEX)]
        start = mark + 1
    parts.append(text[start - len(marks) :])
    label_parts.append(labels[start:])
    return torch.cat(parts), torch.cat(label_parts)


def cut_rows(embeds: list[Row], labels: list[Row], max_length: int | None) -> tuple[list[Row], list[Row]]:
    """Cut every row to `max_length` tokens from its end, with a warning; None cuts nothing."""
    longest = max(len(row) for row in embeds)
    if max_length is None or longest <= max_length:
        return embeds, labels
    logger.warning(
        "a sequence of %d tokens (text and image) is cut to tokenizer_model_max_length %d; raise --model_max_length "
        "or use fewer tiles (--image_aspect_ratio anyres_max_N)",
        longest,
        max_length,
    )
    return [row[:max_length] for row in embeds], [row[:max_length] for row in labels]


def pad_rows(embeds: Sequence[torch.Tensor], labels: Sequence[torch.Tensor], side: str) -> SplicedBatch:
    """Pad rows to the longest, on `side` ("right" or "left")."""
    if side not in PADDING_SIDES:
        raise InputError(f"tokenizer_padding_side {side!r} is not supported; allowed: {', '.join(PADDING_SIDES)}.")
    lengths = [len(row) for row in embeds]
    longest = max(lengths)
    shape = (len(embeds), longest)
    batch = embeds[0].new_zeros(*shape, embeds[0].shape[-1])
    padded_labels = labels[0].new_full(shape, IGNORE_INDEX)
    mask = torch.zeros(shape, dtype=torch.bool, device=batch.device)
    positions = torch.zeros(shape, dtype=torch.long, device=batch.device)
    for index, length in enumerate(lengths):
        place = slice(longest - length, longest) if side == "left" else slice(0, length)
        batch[index, place] = embeds[index]
        padded_labels[index, place] = labels[index]
        mask[index, place] = True
        positions[index, place] = torch.arange(length, device=batch.device)
    return SplicedBatch(batch, padded_labels, mask, positions)


def skip_positions(batch: SplicedBatch, skipping_range: int) -> torch.Tensor:
    """Positions with two random jumps per row, so that a model meets larger positions than its data has.

    Returns:
        long [rows, length]: a random split point; before it an offset in [0, range], after it one that is at
        least as large and at most `range`.
    """
    positions = batch.position_ids.clone()
    for index, mask in enumerate(batch.mask):
        length = int(mask.sum())
        split = int(torch.randint(0, length + 1, ()))
        before = int(torch.randint(0, skipping_range + 1, ()))
        after = int(torch.randint(before, skipping_range + 1, ()))
        row = positions[index]
        positions[index] = torch.where(mask, row + torch.where(row < split, before, after), row)
    return positions
