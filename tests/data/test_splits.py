"""Splits: balanced, without leaks, of the sizes asked for or in their proportions."""

from __future__ import annotations

from collections import Counter

import pytest

from llava.data.items import Item
from llava.data.splits import balanced, grouped, published, shuffled
from llava.errors import InputError


def item(number: int, kind: str = "x", split: str = "", picture: int | None = None) -> Item:
    content = str(number if picture is None else picture).encode()
    return Item(str(number), "<image>", "a", kind, "file", lambda: content, split)


def two_kinds(yes: int, no: int) -> list[Item]:
    return [item(n, "No" if n < no else "Yes") for n in range(yes + no)]


def sizes(train: int, val: int, test: int) -> dict[str, int]:
    return {"train": train, "val": val, "test": test}


def lengths(divided: dict[str, list[Item]]) -> tuple[int, ...]:
    return tuple(map(len, divided.values()))


def test_shuffling_is_by_the_seed_and_stays_as_it_is():
    assert sorted(shuffled(range(100), 1)) == list(range(100))
    assert shuffled(range(100), 1) == shuffled(range(100), 1) != shuffled(range(100), 2)
    assert shuffled("abcdef", 42, "name") == list("cdfeba")


def test_every_order_comes_up():
    orders = Counter(tuple(shuffled("abc", seed)) for seed in range(600))
    assert len(orders) == 6 and min(orders.values()) > 60


@pytest.mark.parametrize(
    ("yes", "no", "asked", "expected"),
    [
        (1500, 1500, (1000, 500, 1000), (1000, 500, 1000)),
        (1500, 1300, (1000, 500, 1000), (1000, 500, 1000)),
        (300, 250, (1000, 500, 1000), (200, 100, 200)),
        (7, 9, (4, 2, 4), (4, 2, 4)),
    ],
)
def test_both_kinds_are_in_each_split_equally_often(yes, no, asked, expected):
    divided = balanced(two_kinds(yes, no), sizes(*asked), 3)
    assert lengths(divided) == expected
    for own in divided.values():
        assert Counter(i.kind for i in own) == {"Yes": len(own) // 2, "No": len(own) // 2}
    names = [i.name for own in divided.values() for i in own]
    assert len(set(names)) == len(names)


def test_an_odd_size_cannot_be_balanced():
    with pytest.raises(InputError, match=r"^--val 3: must be a multiple of 2.*No and Yes"):
        balanced(two_kinds(20, 20), sizes(4, 3, 4), 0)


def test_no_split_may_become_empty():
    with pytest.raises(InputError, match=r"^--source has 5 of each of 2 kinds: too few"):
        balanced(two_kinds(5, 5), sizes(4, 2, 8), 0)


def test_kinds_are_mixed_within_a_split():
    kinds = [i.kind for i in balanced(two_kinds(50, 50), sizes(40, 20, 40), 0)["train"]]
    assert 10 < sum(a != b for a, b in zip(kinds, kinds[1:], strict=False)) < 30


def test_questions_on_one_picture_stay_together():
    items = [item(n, picture=n // 3) for n in range(300)]
    divided = grouped(items, sizes(150, 60, 90), 5)
    assert lengths(divided) == (150, 60, 90)
    where = {split: {i.fingerprint() for i in own} for split, own in divided.items()}
    assert not (where["train"] & where["val"] or where["train"] & where["test"] or where["val"] & where["test"])
    assert divided != grouped(items, sizes(150, 60, 90), 6)


def test_groups_that_do_not_fit_are_said(caplog):
    divided = grouped([item(n, picture=n // 2) for n in range(20)], sizes(7, 4, 6), 0)
    assert lengths(divided) == (6, 4, 6)
    assert "train: 6 of 7" in caplog.text
    with pytest.raises(InputError, match="as small as --val 1"):
        grouped([item(n, picture=n // 2) for n in range(20)], sizes(7, 1, 6), 0)


def test_small_sets_keep_the_proportions(caplog):
    divided = grouped([item(n) for n in range(170)], sizes(1000, 200, 500), 0)
    assert lengths(divided) == (100, 20, 50)
    assert (
        "170 records, fewer than --train 1000 --val 200 --test 500: taking --train 100 --val 20 --test 50"
        in caplog.text
    )


def test_published_splits_are_kept(caplog):
    items = [item(n, split=("train", "val", "test")[n % 3]) for n in range(30)]
    divided = published(items, sizes(4, 10, 11), 0)
    assert lengths(divided) == (4, 10, 10)
    assert all(i.split == split for split, own in divided.items() for i in own)
    assert "test: all 10 records, fewer than --test 11" in caplog.text
    assert divided["train"] != published(items, sizes(4, 10, 11), 1)["train"]
    with pytest.raises(InputError, match="split val is empty"):
        published(items[::3], sizes(1, 1, 1), 0)
