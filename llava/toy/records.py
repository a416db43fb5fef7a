"""Drawn samples as LLaVA JSON records with PNG files."""

from __future__ import annotations

import logging
from collections.abc import Iterable
from pathlib import Path

from llava.errors import InputError
from llava.samples.loading import records_text
from llava.toy.drawing import Sample

logger = logging.getLogger(__name__)


def write_split(folder: Path, split: str, name: str, samples: Iterable[Sample], first: int = 0) -> list[dict]:
    """Write `folder/split.json` and `folder/images/`, and return the records.

    Image paths in the records are relative to `folder`, so `--image_folder folder` finds them. Each record has the
    question types under `kind`, which readers of LLaVA JSON ignore.

    Raises:
        InputError: the folder cannot be written.
    """
    records = []
    try:
        (folder / "images").mkdir(parents=True, exist_ok=True)
        for number, sample in enumerate(samples, start=first):
            identifier = f"{name}_{split}_{number:05d}"
            image = f"images/{split}_{number:05d}.png"
            sample.image.save(folder / image, optimize=True)
            records.append(record(identifier, image, sample))
        (folder / f"{split}.json").write_text(records_text(records), encoding="utf-8")
    except OSError as error:
        raise InputError(f"--output {folder}: cannot write there ({error}); choose another folder") from error
    logger.info("%s: %d records", folder / f"{split}.json", len(records))
    return records


def record(identifier: str, image: str, sample: Sample) -> dict:
    """One LLaVA JSON record; `kind` has one entry per question."""
    turns = []
    for item in sample.rounds:
        turns += [{"from": "human", "value": item.prompt}, {"from": "gpt", "value": item.answer}]
    return {"id": identifier, "image": image, "kind": [item.kind for item in sample.rounds], "conversations": turns}
