"""Orders in which samples are drawn, so that the samples of a batch have similar lengths or one modality.

b is the per-device batch, w the world size times the accumulation steps, m = b * w the size of a megabatch. Lengths
may be negative in the modality modes: the sign tells text-only samples (negative) from the others. Random draws are
`torch.randperm` with the given generator, or with the global one; all sorts are stable.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import torch
from torch.utils.data import Sampler

from llava.errors import InputError

Lengths = Sequence[int]
Generator = torch.Generator | None


def split_to_even_chunks(indices: Sequence[int], lengths: Lengths, num_chunks: int) -> list[list[int]]:
    """Split into chunks of equal size and similar total length; strided slices if the size is not divisible."""
    if len(indices) % num_chunks:
        return [list(indices[start::num_chunks]) for start in range(num_chunks)]
    capacity = len(indices) // num_chunks
    chunks: list[list[int]] = [[] for _ in range(num_chunks)]
    totals = [0] * num_chunks
    for index in indices:
        open_chunks = [k for k in range(num_chunks) if len(chunks[k]) < capacity]
        target = min(open_chunks, key=totals.__getitem__)
        chunks[target].append(index)
        totals[target] += lengths[index]
    return chunks


def get_length_grouped_indices(
    lengths: Lengths, batch_size: int, world_size: int, generator: Generator = None
) -> list[int]:
    """A random order, cut into megabatches; each is sorted by length and dealt evenly to the w batches."""
    megabatches = slices(_randperm(len(lengths), generator), batch_size * world_size)
    return [i for megabatch in megabatches for i in deal(megabatch, lengths, world_size)]


def get_length_grouped_indices_auto_single(
    lengths: Lengths, batch_size: int, world_size: int, generator: Generator = None
) -> list[int]:
    """Megabatches of similar length from large random pools, the longest sample first, in shuffled order."""
    megabatch_size = batch_size * world_size
    pooled = _pooled_order(lengths, megabatch_size, generator)
    megabatches = [deal(megabatch, lengths, world_size) for megabatch in slices(pooled, megabatch_size)]
    return [i for k in _randperm(len(megabatches), generator) for i in megabatches[k]]


def get_modality_length_grouped_indices(
    lengths: Lengths, batch_size: int, world_size: int, generator: Generator = None, strict_generator: bool = False
) -> list[int]:
    """Megabatches of one modality, each dealt by length; the two incomplete ones come last, together.

    LLaVA-NeXT draws the order within a modality from the global generator even if another is given; this is kept,
    so that its orders come out, unless `strict_generator` is set.
    """
    within = get_length_grouped_indices
    order, leftovers = _by_modality(within, lengths, batch_size, world_size, generator, strict_generator)
    return order + sorted(leftovers)


def get_modality_length_grouped_indices_auto(
    lengths: Lengths, batch_size: int, world_size: int, generator: Generator = None, strict_generator: bool = False
) -> list[int]:
    """As by modality, with the pools of `group_by_length` within each; the two last megabatches are left out."""
    within = get_length_grouped_indices_auto_single
    order, _ = _by_modality(within, lengths, batch_size, world_size, generator, strict_generator)
    return order


def get_variable_length_grouped_indices(
    lengths: Lengths, batch_size: int, world_size: int, generator: Generator = None, megabatch_mult: int = 8
) -> list[int]:
    """Sort all by length, shuffle within slices of `megabatch_mult` megabatches, then shuffle the megabatches."""
    megabatch_size = batch_size * world_size
    ranks = _randperm(len(lengths), generator)
    by_length = _longest_first(range(len(lengths)), lengths)
    pools = slices(by_length, megabatch_mult * megabatch_size)
    shuffled = [i for pool in pools for i in _longest_first(pool, ranks)]
    megabatches = slices(shuffled, megabatch_size)
    return [i for k in _randperm(len(megabatches), generator) for i in megabatches[k]]


class LengthGroupedSampler(Sampler[int]):
    """Draw samples by one of the orders above.

    Without a mode set, by length. `len()` is the number of samples that are really drawn: grouping by modality
    automatically leaves out the last megabatch of each modality.

    Args:
        batch_size: per-device batch size b.
        world_size: processes times gradient accumulation steps, w.
        lengths: one per sample; not 0 when grouping by modality.
        generator: for the random draws; the global one if not given.
        strict_generator: draw everything from `generator`, see `get_modality_length_grouped_indices`.
    """

    def __init__(
        self,
        batch_size: int,
        world_size: int,
        lengths: Lengths | None = None,
        generator: Generator = None,
        variable_length: bool = False,
        group_by_modality: bool = False,
        group_by_modality_auto: bool = False,
        strict_generator: bool = False,
    ) -> None:
        if lengths is None:
            raise InputError("LengthGroupedSampler needs the lengths of the samples")
        if group_by_modality or group_by_modality_auto:
            check_lengths(lengths)
        self.batch_size = batch_size
        self.world_size = world_size
        self.lengths = list(lengths)
        self.generator = generator
        self.variable_length = variable_length
        self.group_by_modality = group_by_modality
        self.group_by_modality_auto = group_by_modality_auto
        self.strict_generator = strict_generator

    def __len__(self) -> int:
        if not self.group_by_modality_auto:
            return len(self.lengths)
        parts = modalities(self.lengths)
        if len(parts) == 1:
            return len(self.lengths)
        megabatch_size = self.batch_size * self.world_size
        return sum((len(part) - 1) // megabatch_size * megabatch_size for part in parts)

    def __iter__(self) -> Iterator[int]:
        common = (self.lengths, self.batch_size, self.world_size, self.generator)
        if self.group_by_modality:
            return iter(get_modality_length_grouped_indices(*common, self.strict_generator))
        if self.group_by_modality_auto:
            return iter(get_modality_length_grouped_indices_auto(*common, self.strict_generator))
        if self.variable_length:
            return iter(get_variable_length_grouped_indices(*common))
        return iter(get_length_grouped_indices_auto_single(*common))


def _by_modality(
    within: Callable[..., list[int]],
    lengths: Lengths,
    batch_size: int,
    world_size: int,
    generator: Generator,
    strict_generator: bool,
) -> tuple[list[int], list[int]]:
    """(order of the complete megabatches, indices of the two that were set aside)."""
    check_lengths(lengths)
    parts = modalities(lengths)
    if len(parts) == 1:
        return within(lengths, batch_size, world_size, generator), []
    inner = generator if strict_generator else None
    complete: list[list[int]] = []
    leftovers: list[int] = []
    for part in parts:
        order = within([abs(lengths[i]) for i in part], batch_size, world_size, inner)
        *megabatches, last = slices([part[k] for k in order], batch_size * world_size)
        complete += megabatches
        leftovers += last
    return [i for k in _randperm(len(complete), generator) for i in complete[k]], leftovers


def modalities(lengths: Lengths) -> list[list[int]]:
    """Indices of the positive lengths, then of the negative ones; a part without members is left out."""
    positive = [i for i, length in enumerate(lengths) if length > 0]
    negative = [i for i, length in enumerate(lengths) if length < 0]
    return [part for part in (positive, negative) if part]


def check_lengths(lengths: Lengths) -> None:
    empty = [i for i, length in enumerate(lengths) if length == 0]
    if empty:
        raise InputError(
            f"grouping by modality needs samples with text, but the length of sample {empty[0]} is 0 "
            f"({len(empty)} such samples); remove them or leave out --group_by_modality_length[_auto]"
        )


def _pooled_order(lengths: Lengths, megabatch_size: int, generator: Generator) -> list[int]:
    """The length-grouped order of transformers' Trainer: sorted random pools, the longest sample in front."""
    factor = max(1, min(len(lengths) // (4 * megabatch_size), 50))
    order = _randperm(len(lengths), generator)
    pools = [_longest_first(pool, lengths) for pool in slices(order, factor * megabatch_size)]
    longest = max(range(len(pools)), key=lambda k: lengths[pools[k][0]])
    pools[0][0], pools[longest][0] = pools[longest][0], pools[0][0]
    return [i for pool in pools for i in pool]


def deal(megabatch: Sequence[int], lengths: Lengths, world_size: int) -> list[int]:
    chunks = split_to_even_chunks(_longest_first(megabatch, lengths), lengths, world_size)
    return [i for chunk in chunks for i in chunk]


def _longest_first(indices: Sequence[int], lengths: Lengths) -> list[int]:
    return sorted(indices, key=lambda i: lengths[i], reverse=True)


def slices(indices: Sequence[int], size: int) -> list[list[int]]:
    return [list(indices[start : start + size]) for start in range(0, len(indices), size)]


def _randperm(count: int, generator: Generator) -> list[int]:
    return torch.randperm(count, generator=generator).tolist()
