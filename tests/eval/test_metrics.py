"""When an answer counts as correct."""

from __future__ import annotations

import pytest

from llava.errors import InputError
from llava.eval.metrics import METRICS, choice, exact, metric_named, normalise, relaxed


@pytest.mark.parametrize(
    ("text", "expected"),
    [(" Yes.\n", "yes"), ("No;", "no"), ("3/4", "3/4"), ("e.g..", "e.g."), ("", ""), (".", ""), ("Yes!", "yes!")],
)
def test_normalise(text, expected):
    assert normalise(text) == expected


@pytest.mark.parametrize(
    ("prediction", "reference", "same"),
    [
        ("yes.", "Yes", True),
        ("Yes", "No", False),
        ("Yes, there are", "Yes", False),
        ("", "Yes", False),
        ("yes..", "Yes", False),
    ],
)
def test_exact(prediction, reference, same):
    assert exact(prediction, reference) is same


@pytest.mark.parametrize(
    ("prediction", "reference", "same"),
    [
        ("Acute", "acute", True),
        ("B. acute", "acute", True),
        ("(b) acute.", "acute", True),
        ("b) acute", "B. acute", True),
        ("acute", "B. acute", True),
        ("A. acute", "B. acute", False),
        ("obtuse", "acute", False),
        ("B. obtuse", "acute", False),
        ("b", "B", True),
        ("(B)", "b", True),
        ("B. 12 cm", "B", True),
        ("C. 12 cm", "B", False),
        ("12 cm", "B", False),
        ("a cute", "cute", False),
        ("i.e. acute", "acute", False),
        ("B", "B. acute", False),
    ],
)
def test_choice(prediction, reference, same):
    assert choice(prediction, reference) is same


@pytest.mark.parametrize(
    ("prediction", "reference", "same"),
    [
        ("105", "100", True),
        ("95.0", "100", True),
        ("105.1", "100", False),
        ("-100", "100", False),
        ("-98", "-100", True),
        ("0", "0", True),
        ("0.01", "0", False),
        ("1,020", "1000", True),
        ("10,20", "1020", False),
        ("50%", "0.5", True),
        ("50 %", "50%", True),
        ("50", "50%", False),
        ("Blue.", "blue", True),
        ("blue", "green", False),
        ("5 apples", "5", False),
        ("nan", "nan", True),
        ("inf", "5", False),
        ("1_0", "10", False),
    ],
)
def test_relaxed(prediction, reference, same):
    assert relaxed(prediction, reference) is same


def test_metrics_are_found_by_name():
    assert {name: metric_named(name) for name in METRICS} == METRICS
    assert set(METRICS) == {"exact", "choice", "relaxed"}


def test_unknown_metric_lists_the_known_ones():
    with pytest.raises(InputError, match=r"bleu.*exact, choice, relaxed"):
        metric_named("bleu")
