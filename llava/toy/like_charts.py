"""Pre-training pictures with coloured blocks or dots at marked heights: like the charts, but without a scale."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from PIL import Image

from llava.toy.drawing import BLACK, COLOURS, SIZE, Round, Sample, box, conversation, finish, pick, scaled
from llava.toy.like_figures import ground

HIGHEST = 9
_UNIT = 5.5  # pixels of height per unit
_FLOOR = SIZE - 3


def draw(rng: np.random.Generator) -> Sample:
    """One to four columns of different colours: how high each is, all in a row, which one is higher."""
    number = int(rng.integers(1, 5))
    noun = pick(rng, ["block", "dot"])
    names = [str(name) for name in rng.permutation(list(COLOURS))]
    shown = names[:number]
    heights = [int(height) for height in rng.integers(1, HIGHEST + 1, number)]
    listed = "; ".join(f"{name} {height}" for name, height in zip(shown, heights, strict=True))
    asked = names[int(rng.integers(2 * number))] if number < 4 else pick(rng, names)
    rounds = [Round("Read the heights from left to right.\nAnswer:", listed, "height_list")]
    rounds += [
        Round(f"How high is the {name} {noun}?\nAnswer:", str(height), "height")
        for name, height in zip(shown, heights, strict=True)
    ]
    rounds += [
        Round(f"How high is the {noun} at the {side} end?\nAnswer:", str(heights[end]), "height_at_end")
        for side, end in (("left", 0), ("right", -1))
    ]
    there = "Yes" if asked in shown else "No"
    rounds.append(Round(f"Is there a {asked} {noun}? Yes or No?\nAnswer:", there, "has_colour"))
    if number > 1 and heights[0] != heights[1]:
        first = int(rng.integers(2))
        question = f"Which {noun} is higher, {shown[first]} or {shown[1 - first]}?\nAnswer:"
        rounds.append(Round(question, shown[int(heights[1] > heights[0])], "higher"))
    return conversation(rng, _picture(rng, noun, shown, heights), rounds)


def _picture(rng: np.random.Generator, noun: str, names: Sequence[str], heights: Sequence[int]) -> Image.Image:
    image, pen = ground(rng)
    slot = SIZE / len(names)
    marked = bool(rng.random() < 0.5)
    for k, (name, height) in enumerate(zip(names, heights, strict=True)):
        left, top = slot * (k + 0.2), _FLOOR - _UNIT * height
        right = left + min(0.6 * slot, 14)
        if noun == "block":
            pen.rectangle(scaled([(left, top), (right, _FLOOR)]), fill=COLOURS[name])
        else:
            pen.ellipse(box(((left + right) / 2, top), 2.5), fill=COLOURS[name])
        for unit in range(1, HIGHEST + 1 if noun == "dot" else height):
            y = _FLOOR - _UNIT * unit
            if marked:
                pen.line(scaled([(left, y), (right, y)]), fill=BLACK, width=2)
    return finish(image)
