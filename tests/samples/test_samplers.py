"""Sampler orders against the conformance data, and what differs from LLaVA-NeXT on purpose."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from llava.errors import InputError
from llava.samples.samplers import LengthGroupedSampler, get_modality_length_grouped_indices, split_to_even_chunks
from llava.train.zo.epoch_sampler import EpochSampler

DATA = json.loads((Path(__file__).parents[1] / "assets" / "golden" / "samplers" / "samplers.json").read_text())
MODES = {
    "group_by_length": {},
    "group_by_modality_length": {"group_by_modality": True},
    "group_by_modality_length_auto": {"group_by_modality_auto": True},
    "group_by_varlen": {"variable_length": True},
}


def sampler(case: dict) -> LengthGroupedSampler:
    generator = None if case["generator"] is None else torch.Generator().manual_seed(case["generator"])
    return LengthGroupedSampler(
        case["batch_size"], case["world_size"], case["lengths"], generator, **MODES[case["mode"]]
    )


@pytest.mark.parametrize("case", DATA["split_to_even_chunks"], ids=lambda case: f"{len(case['indices'])}")
def test_chunks(case):
    assert split_to_even_chunks(case["indices"], case["lengths"], case["num_chunks"]) == case["chunks"]


@pytest.mark.parametrize("number", range(len(DATA["cases"])))
def test_order(number):
    case = DATA["cases"][number]
    torch.manual_seed(case["seed"])
    drawn = sampler(case)
    assert list(drawn) == case["indices"]
    if case.get("second_epoch") is not None:
        assert list(drawn) == case["second_epoch"]


@pytest.mark.parametrize("number", range(len(DATA["cases"])))
def test_length_is_what_is_really_drawn(number):
    case = DATA["cases"][number]
    drawn = sampler(case)
    assert len(drawn) == len(case["indices"])
    if case["is_permutation"] and "len" in case:
        assert len(drawn) == case["len"]


@pytest.mark.parametrize("mode", ["group_by_modality", "group_by_modality_auto"])
def test_zero_length_is_refused(mode):
    with pytest.raises(InputError, match="length of sample 2 is 0"):
        LengthGroupedSampler(2, 1, [3, -4, 0, 5], **{mode: True})


def test_lengths_are_needed():
    with pytest.raises(InputError, match="needs the lengths"):
        LengthGroupedSampler(2, 1)


def test_strict_generator_does_not_touch_the_global_one():
    lengths = [5, -3, 8, -9, 2, 4, -6, 7, -1, 3]
    torch.manual_seed(0)
    before = torch.get_rng_state()
    orders = []
    for _ in range(2):
        generator = torch.Generator().manual_seed(7)
        orders.append(get_modality_length_grouped_indices(lengths, 2, 1, generator, strict_generator=True))
    assert orders[0] == orders[1]
    assert sorted(orders[0]) == list(range(10))
    assert torch.equal(torch.get_rng_state(), before)


def test_the_order_of_an_epoch_is_a_function_of_seed_and_epoch() -> None:
    lengths = [5, 9, -3, 4, -8, 2, 7, -1] * 4
    orders = {}
    for seed in (0, 1):
        ordered = EpochSampler(LengthGroupedSampler(2, 1, lengths=lengths, group_by_modality=True), seed)
        for epoch in (0, 1):
            ordered.set_epoch(epoch)
            before = torch.random.get_rng_state()
            orders[seed, epoch] = list(ordered)
            assert torch.equal(before, torch.random.get_rng_state())
            torch.rand(3)  # whatever happens between
            ordered.set_epoch(epoch)
            assert list(ordered) == orders[seed, epoch]
        ordered.set_epoch(0)
        assert [list(ordered), list(ordered)] == [orders[seed, 0], orders[seed, 1]]  # a loop that sets none
    assert sorted(orders[0, 0]) == list(range(32)) and len(ordered) == 32
    assert orders[0, 0] != orders[0, 1] != orders[1, 1]
