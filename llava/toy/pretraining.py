"""The drawings that the tiny checkpoint is pre-trained on: related to the demo tasks, but never the same questions.

    python -m llava.toy.pretraining --output DIR --samples 120000 --seed 7

writes DIR/train.json (LLaVA JSON) and DIR/images/; every sample is a function of (seed, its number), so a larger
number continues a smaller one. `--first N` starts at number N: use numbers that training did not see for checking.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np

from llava.errors import InputError, command
from llava.toy import like_charts, like_figures, like_scans
from llava.toy.drawing import MOST_ROUNDS, Sample, sample_rng
from llava.toy.records import write_split

STREAM = 1000  # keeps these random streams apart from those of the demo sets
_TURN: tuple[Callable[[np.random.Generator], Sample], ...] = (
    like_scans.draw,
    like_figures.draw_shapes,
    like_charts.draw,
    like_figures.draw_corners,
    like_scans.draw,
    like_figures.draw_pies,
    like_charts.draw,
)


def draw(seed: int, number: int) -> Sample:
    """Pre-training sample `number`: the kinds of picture take turns."""
    return _TURN[number % len(_TURN)](sample_rng(seed, STREAM, number))


@command
def main(argv: list[str] | None = None) -> None:
    """Entry point, see the module's docstring."""
    parser = argparse.ArgumentParser(description="Draw the pre-training set of the tiny checkpoint.")
    parser.add_argument("--output", type=Path, required=True, help="folder for the JSON file and the pictures")
    parser.add_argument("--samples", type=int, default=120_000, help="how many")
    parser.add_argument("--first", type=int, default=0, help="number of the first sample")
    parser.add_argument("--rounds", type=int, default=MOST_ROUNDS, help="keep at most this many questions a picture")
    parser.add_argument("--seed", type=int, default=7)
    arguments = parser.parse_args(argv)
    if min(arguments.samples, arguments.rounds) < 1 or min(arguments.first, arguments.seed) < 0:
        raise InputError("--samples and --rounds must be at least 1, --first and --seed at least 0")
    numbers = range(arguments.first, arguments.first + arguments.samples)
    samples = (draw(arguments.seed, number) for number in numbers)
    shortened = (replace(sample, rounds=sample.rounds[: arguments.rounds]) for sample in samples)
    write_split(arguments.output, "train", "pretrain", shortened, first=numbers.start)


if __name__ == "__main__":
    main()
