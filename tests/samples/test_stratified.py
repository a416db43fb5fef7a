"""Every answer evenly spread over an epoch."""

from __future__ import annotations

from collections import Counter
from types import SimpleNamespace

import pytest
import torch

from llava.errors import InputError
from llava.samples.stratified import MOST_ANSWERS, StratifiedSampler, can_be_spread, spread
from llava.train.flags.parsing import parse_arguments
from llava.train.order import order_of
from llava.train.zo.epoch_sampler import EpochSampler

ANSWERS = (["yes"] * 50 + ["no"] * 30 + ["cannot tell"] * 20) * 2


def _counts(indices: list[int]) -> Counter[str]:
    return Counter(ANSWERS[i] for i in indices)


def test_each_stretch_has_each_answer_in_its_share() -> None:
    torch.manual_seed(0)
    order = spread(ANSWERS)
    assert sorted(order) == list(range(200))
    for length in (10, 20, 50):
        for start in range(0, 201 - length):
            found = _counts(order[start : start + length])
            for answer, share in (("yes", 0.5), ("no", 0.3), ("cannot tell", 0.2)):
                assert abs(found[answer] - share * length) <= 1, (start, length)


def test_the_records_of_an_answer_come_in_random_order() -> None:
    first = [i for i in spread(ANSWERS) if ANSWERS[i] == "yes"]
    second = [i for i in spread(ANSWERS) if ANSWERS[i] == "yes"]
    assert sorted(first) == sorted(second) and first != second != sorted(second)


def test_rare_answers_are_spread_as_one() -> None:
    often = [str(k) for k in range(MOST_ANSWERS) for _ in range(3)]
    rare = [f"rare {k}" for k in range(64)] + ["twice", "twice"]
    order = spread(often + rare)
    assert sorted(order) == list(range(len(often + rare)))
    places = [k for k, i in enumerate(order) if i >= len(often)]
    gaps = [after - before for before, after in zip(places, places[1:], strict=False)]
    assert max(gaps) <= 2 * len(order) / len(places)  # as one stratum they never come in a heap


def test_with_modalities_a_batch_has_one_and_each_is_spread() -> None:
    lengths = [5 if k % 4 else -(3 + k % 7) for k in range(200)]
    sampler = StratifiedSampler(ANSWERS, lengths, batch_size=5, world_size=2)
    order = list(sampler)
    assert sorted(order) == list(range(200)) and len(sampler) == 200
    batches = [order[start : start + 10] for start in range(0, 200, 10)]
    assert sum(len({lengths[i] > 0 for i in batch}) == 1 for batch in batches) >= len(batches) - 1
    for batch in batches[:15]:
        if lengths[batch[0]] > 0:
            assert abs(_counts(batch)["yes"] - 5) <= 1
    with pytest.raises(InputError, match="length of sample 1 is 0"):
        StratifiedSampler(["a", "b"], [3, 0])


def test_the_order_is_a_function_of_seed_and_epoch() -> None:
    orders = []
    for seed, epoch in ((0, 0), (0, 0), (0, 1), (5, 0)):
        sampler = EpochSampler(StratifiedSampler(ANSWERS), seed)
        sampler.set_epoch(epoch)
        torch.rand(3)
        orders.append(list(sampler))
    assert orders[0] == orders[1]
    assert orders[0] != orders[2] != orders[3] != orders[0]


def test_what_cannot_be_spread() -> None:
    assert can_be_spread(["a", "b", "a"])
    assert not can_be_spread(["a", "b", "c"])
    assert not can_be_spread(["a", "a"])
    assert not can_be_spread([])


@pytest.mark.parametrize(
    "flags, stratified",
    [
        ({"stratify_answers": "auto"}, True),
        ({"stratify_answers": "auto", "group_by_modality_length": True}, True),
        ({"stratify_answers": "auto", "group_by_length": True}, False),
        ({"stratify_answers": "off"}, False),
    ],
)
def test_the_trainer_asks_for_it(flags: dict[str, object], stratified: bool) -> None:
    usual = dict.fromkeys(("group_by_length", "group_by_modality_length", "group_by_varlen"), False)
    usual |= {"group_by_modality_length_auto": False, "train_batch_size": 4}
    args = SimpleNamespace(**{**usual, "gradient_accumulation_steps": 1, **flags})
    dataset = SimpleNamespace(answers=["a", "b", "a"], lengths=[1, 1, 1], modality_lengths=[1, 1, 1])
    assert isinstance(order_of(dataset, args, 1), StratifiedSampler) == stratified


def test_other_values_are_refused(tmp_path) -> None:
    with pytest.raises(InputError, match="--stratify_answers some: allowed are auto, off"):
        parse_arguments(["--data_path", "x.json", "--output_dir", str(tmp_path), "--stratify_answers", "some"])
