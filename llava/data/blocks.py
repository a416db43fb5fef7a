"""Pre-training pictures with coloured blocks of one to five marked units: near the bar charts, but without a scale."""

from __future__ import annotations

import numpy as np
from PIL import Image

from llava.data.drawing import BLACK, COLOURS, SIZE, Round, Sample, conversation, finish, pick, scaled
from llava.data.shapes import ground

_UNIT = 9  # pixels of height per unit
_FLOOR = SIZE - 4


def draw(rng: np.random.Generator) -> Sample:
    """One to three blocks of different heights: how tall each is, which one is taller, which colours there are."""
    number = int(rng.integers(1, 4))
    names = [str(name) for name in rng.permutation(list(COLOURS))]
    shown, absent = names[:number], names[number:]
    heights = [int(height) + 1 for height in rng.permutation(5)[:number]]
    rounds = [
        Round(f"How tall is the {name} block?\nAnswer:", str(height), "block_height")
        for name, height in zip(shown, heights, strict=True)
    ]
    there = bool(rng.random() < 0.5)
    asked = pick(rng, shown if there else absent)
    rounds.append(Round(f"Is there a {asked} block? Yes or No?\nAnswer:", "Yes" if there else "No", "has_colour"))
    rounds.append(Round("How many blocks are there?\nAnswer:", str(number), "block_count"))
    if number > 1:
        tall = shown[int(heights[1] > heights[0])]
        first = int(rng.integers(2))
        question = f"Which block is taller, {shown[first]} or {shown[1 - first]}?\nAnswer:"
        rounds.append(Round(question, tall, "taller_block"))
    return conversation(rng, _picture(rng, shown, heights), rounds)


def _picture(rng: np.random.Generator, names: list[str], heights: list[int]) -> Image.Image:
    image, pen = ground(rng)
    slot = SIZE / len(names)
    for k, (name, height) in enumerate(zip(names, heights, strict=True)):
        left, top = slot * (k + 0.2), _FLOOR - _UNIT * height
        right = left + min(0.6 * slot, 16)
        pen.rectangle(scaled([(left, top), (right, _FLOOR)]), fill=COLOURS[name])
        for unit in range(1, height):
            y = _FLOOR - _UNIT * unit
            pen.line(scaled([(left, y), (right, y)]), fill=BLACK, width=3)
    return finish(image)
