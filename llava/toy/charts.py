"""The chart task: a bar or line chart with a scale from 0 to 10 and one value to read."""

from __future__ import annotations

import numpy as np
from PIL import Image, ImageDraw

from llava.data.prompts import CHART
from llava.toy.drawing import (
    BLACK,
    COLOURS,
    SIZE,
    WHITE,
    Point,
    Sample,
    box,
    canvas,
    draw_number,
    finish,
    pick,
    sample,
    scaled,
)

LARGEST = 10
LEFT, TOP, BOTTOM = 11, 5, 51  # the plot area, in pixels; digits of the scale stand left of it
GRID_COLOUR = (205, 205, 205)


def draw(rng: np.random.Generator, index: int) -> Sample:
    """Chart number `index`: bars and lines take turns; the answer is a whole number from 1 to 10."""
    return _bars(rng) if index % 2 == 0 else _line(rng)


def height_of(value: float) -> float:
    """Row (in pixels, from the top) that stands for `value`."""
    return BOTTOM - (BOTTOM - TOP) * value / LARGEST


def axes() -> tuple[Image.Image, ImageDraw.ImageDraw]:
    """An oversampled canvas with grid lines at every second unit and the two axes."""
    image, pen = canvas(WHITE)
    for value in range(2, LARGEST + 1, 2):
        pen.line(scaled([(LEFT, height_of(value)), (SIZE - 1, height_of(value))]), fill=GRID_COLOUR, width=3)
    pen.line(scaled([(LEFT, TOP - 2), (LEFT, BOTTOM), (SIZE - 1, BOTTOM)]), fill=BLACK, width=4)
    return image, pen


def label_scale(image: Image.Image) -> Image.Image:
    """Put 0, 5 and 10 beside the vertical axis of a finished chart."""
    for value in (0, 5, LARGEST):
        text = str(value)
        draw_number(image, (LEFT - 2 - 4 * len(text), round(height_of(value)) - 3), text)
    return image


def _bars(rng: np.random.Generator) -> Sample:
    names = list(rng.permutation(list(COLOURS))[: int(rng.integers(2, 5))])
    values = rng.integers(1, LARGEST + 1, len(names))
    image, pen = axes()
    slot = (SIZE - 2 - LEFT) / len(names)
    for k, (name, value) in enumerate(zip(names, values, strict=True)):
        left = LEFT + 1 + slot * (k + 0.15)
        corners = [(left, height_of(int(value))), (left + 0.7 * slot, BOTTOM - 0.5)]
        pen.rectangle(scaled(corners), fill=COLOURS[str(name)])
    asked = int(rng.integers(len(names)))
    question = pick(rng, ["What is the value of the {} bar?", "How high is the {} bar?"]).format(names[asked])
    return _sample(image, question, int(values[asked]), "bar")


def _line(rng: np.random.Generator) -> Sample:
    count = int(rng.integers(3, 6))
    values = rng.integers(1, LARGEST + 1, count)
    colour = COLOURS[pick(rng, list(COLOURS))]
    image, pen = axes()
    slot = (SIZE - 3 - LEFT) / count
    points: list[Point] = [(LEFT + 1 + slot * (k + 0.5), height_of(int(v))) for k, v in enumerate(values)]
    pen.line(scaled(points), fill=colour, width=6, joint="curve")
    for point in points:
        pen.ellipse(box(point, 1.8), fill=colour)
    asked, where = [(0, "first"), (count - 1, "last")][int(rng.integers(2))]
    return _sample(image, f"What is the value of the {where} point?", int(values[asked]), "line")


def _sample(image: Image.Image, question: str, value: int, kind: str) -> Sample:
    picture = label_scale(finish(image))
    return sample(picture, CHART.format(question=question), str(value), kind)
