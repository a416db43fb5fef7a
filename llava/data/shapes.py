"""Pre-training pictures with coloured shapes, discs and corners: near the geometry figures, with other questions."""

from __future__ import annotations

import math

import numpy as np
from PIL import Image, ImageDraw

from llava.data.drawing import (
    COLOURS,
    SIZE,
    WHITE,
    Colour,
    Point,
    Round,
    Sample,
    box,
    canvas,
    conversation,
    finish,
    pick,
    regular_polygon,
    scaled,
)

GROUNDS: list[Colour] = [WHITE, (225, 225, 225), (200, 210, 220), (235, 225, 205)]
_SHAPES = {"circle": 0, "triangle": 3, "square": 4, "hexagon": 6}


def ground(rng: np.random.Generator) -> tuple[Image.Image, ImageDraw.ImageDraw]:
    """An empty oversampled canvas of a random light colour."""
    return canvas(GROUNDS[int(rng.integers(len(GROUNDS)))])


def draw_shape(rng: np.random.Generator) -> Sample:
    """One shape: its colour, name and place."""
    image, pen = ground(rng)
    shape, colour = pick(rng, list(_SHAPES)), pick(rng, list(COLOURS))
    radius = rng.uniform(9, 20)
    x, y = (float(v) for v in rng.uniform(radius + 1, SIZE - radius - 1, 2))
    _put(rng, pen, shape, COLOURS[colour], (x, y), radius)
    names = [str(n) for n in rng.permutation(list(_SHAPES))]
    listed = f"Which shape is it? Options: {'; '.join(names[:-1])} or {names[-1]}\nAnswer:"
    asked = colour if rng.random() < 0.5 else pick(rng, [c for c in COLOURS if c != colour])
    rounds = [
        Round(pick(rng, ["What colour is the shape?\nAnswer:", "Name the colour."]), colour, "colour"),
        Round(pick(rng, [listed, "Name the shape.\nAnswer:"]), shape, "shape"),
        Round("Where is the shape, left or right?\nAnswer:", ("left", "right")[int(x > SIZE / 2)], "position"),
        Round("Where is the shape, top or bottom?\nAnswer:", ("top", "bottom")[int(y > SIZE / 2)], "position"),
        Round(f"Is the shape {asked}? Yes or No?\nAnswer:", "Yes" if asked == colour else "No", "is_colour"),
    ]
    return conversation(rng, finish(image), rounds)


def draw_discs(rng: np.random.Generator) -> Sample:
    """One to five discs of one colour, none touching another: how many."""
    image, pen = ground(rng)
    number, colour = int(rng.integers(1, 6)), pick(rng, list(COLOURS))
    for cell in rng.permutation(9)[:number]:
        centre = (9.5 + 18.5 * (cell % 3) + rng.uniform(-3, 3), 9.5 + 18.5 * (cell // 3) + rng.uniform(-3, 3))
        pen.ellipse(box(centre, rng.uniform(3.5, 5.5)), fill=COLOURS[colour])
    limit = int(rng.integers(1, 5))
    rounds = [
        Round(pick(rng, ["How many discs are there?\nAnswer:", "Count the discs."]), str(number), "count"),
        Round(f"Are there more than {limit} discs? Yes or No?", "Yes" if number > limit else "No", "more_than"),
        Round("What colour are the discs?\nAnswer:", colour, "colour"),
    ]
    return conversation(rng, finish(image), rounds)


def draw_corner(rng: np.random.Generator) -> Sample:
    """Two strokes that meet in a narrow, a square or a wide corner."""
    image, pen = ground(rng)
    answer, colour = pick(rng, ["narrow", "square", "wide"]), pick(rng, list(COLOURS))
    size = math.radians({"narrow": rng.uniform(20, 60), "square": 90.0, "wide": rng.uniform(120, 160)}[answer])
    start = rng.uniform(0, 2 * math.pi)
    middle = start + size / 2
    tip = (SIZE / 2 - 10 * math.cos(middle), SIZE / 2 - 10 * math.sin(middle))
    ends = [(tip[0] + 28 * math.cos(a), tip[1] + 28 * math.sin(a)) for a in (start, start + size)]
    pen.line(scaled([ends[0], tip, ends[1]]), fill=COLOURS[colour], width=int(rng.integers(8, 16)), joint="curve")
    side = ("left", "right")[int(math.cos(middle) > 0)]
    rounds = [
        Round("Is the corner narrow, square or wide?\nAnswer:", answer, "corner"),
        Round("Does the corner open to the left or to the right?\nAnswer:", side, "direction"),
        Round("What colour are the lines?\nAnswer:", colour, "colour"),
    ]
    return conversation(rng, finish(image), rounds)


def _put(
    rng: np.random.Generator, pen: ImageDraw.ImageDraw, shape: str, colour: Colour, centre: Point, radius: float
) -> None:
    if shape == "circle":
        pen.ellipse(box(centre, radius), fill=colour)
        return
    corners = regular_polygon(centre, radius, _SHAPES[shape], rng.uniform(0, 2 * math.pi))
    pen.polygon(scaled(corners), fill=colour)
