"""The study's prompts (docs/reproduction.md), to the letter; the drawn tasks of `llava.toy` ask with the same."""

from __future__ import annotations

from collections.abc import Sequence

SCAN = "<image>\nAre there signs of a tumor in the image? Yes or No?\nAnswer:"
SCANS = (
    "<image>\nQuestion: Are there signs of a tumor in the image? Yes or No?\nAnswer: ",
    "<image>\nQuestion: Are there signs of a tumor in the image? Yes or No?\nAnswer:",
    "<image>\nQuestion: Are there signs of a tumor? Yes or No?\nAnswer:",
    "<image>\nQuestion: Are there signs of a tumor in the image? Yes or No?",
    SCAN,
    "<image> Are there signs of a tumor in the image? Yes or No? Answer:",
    "<image>\nAre there signs of a tumor in the image? Respond with Yes or No.\nAnswer:",
)
"""All that it tried, in its order: the first ends in a blank, the second is the same without it."""
OPTIONS = "<image>\n{question} Options: {options}\nAnswer:"
CHART = "<image>\nFind the answer in the image for: {question}\nAnswer:"


def join_options(options: Sequence[str]) -> str:
    """`a; b or c`."""
    return "; ".join(options[:-1]) + " or " + options[-1]
