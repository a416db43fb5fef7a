"""The three demo sets, drawn from a seed: what playground/data holds.

    python -m llava.toy.demo --output playground/data --seed 42

writes, for each of `scan` (is there a mass: yes or no), `figure` (geometry with options) and `chart` (read a value),
a folder with train.json, val.json, test.json (LLaVA JSON) and images/ (PNG). No picture is in two splits.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from llava.errors import InputError, command
from llava.toy import charts, figures, scans
from llava.toy.drawing import Sample, fingerprint, sample_rng
from llava.toy.records import write_split

MOST_ATTEMPTS = 1000


@dataclass(frozen=True)
class DemoSet:
    """How one set is drawn, the number of its random stream, and the sizes of its splits."""

    draw: Callable[[np.random.Generator, int], Sample]
    stream: int
    sizes: dict[str, int]


SETS = {
    "scan": DemoSet(scans.draw, 1, {"train": 1000, "val": 200, "test": 500}),
    "figure": DemoSet(figures.draw, 2, {"train": 240, "val": 60, "test": 120}),
    "chart": DemoSet(charts.draw, 3, {"train": 240, "val": 60, "test": 120}),
}


def split_samples(name: str, seed: int, sizes: Mapping[str, int] | None = None) -> dict[str, list[Sample]]:
    """All samples of one set, by split; a picture that has been drawn before is drawn anew.

    Args:
        name: a key of `SETS`.
        seed: equal seeds give equal samples.
        sizes: samples of each split; default: the set's own.
    """
    chosen = SETS[name]
    seen: set[str] = set()
    splits = {}
    for number, (split, size) in enumerate((sizes or chosen.sizes).items()):
        splits[split] = [_unseen(seen, chosen, index, seed, number) for index in range(size)]
    return splits


def _unseen(seen: set[str], chosen: DemoSet, index: int, seed: int, split: int) -> Sample:
    for attempt in range(MOST_ATTEMPTS):
        sample = chosen.draw(sample_rng(seed, chosen.stream, split, index, attempt), index)
        key = fingerprint(sample.image)
        if key not in seen:
            seen.add(key)
            return sample
    raise RuntimeError(f"sample {index} was drawn {MOST_ATTEMPTS} times and always equal to an earlier one")


@command
def main(argv: list[str] | None = None) -> None:
    """Entry point, see the module's docstring."""
    parser = argparse.ArgumentParser(description="Draw the demo sets.")
    parser.add_argument("--output", type=Path, required=True, help="folder that gets one folder per set")
    parser.add_argument("--seed", type=int, default=42)
    parser.add_argument("--sets", nargs="+", default=list(SETS), help=f"some of {', '.join(SETS)}")
    arguments = parser.parse_args(argv)
    unknown = [name for name in arguments.sets if name not in SETS]
    if unknown or arguments.seed < 0:
        raise InputError(f"--sets {unknown} --seed {arguments.seed}: sets are {', '.join(SETS)}, seeds start at 0")
    for name in arguments.sets:
        for split, samples in split_samples(name, arguments.seed).items():
            records = write_split(arguments.output / name, split, name, samples)
            sys.stdout.write(f"{arguments.output / name / split}.json: {len(records)} records\n")


if __name__ == "__main__":
    main()
