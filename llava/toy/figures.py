"""The geometry task: a figure, a question and options to choose from (without letters, in random order)."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
from PIL import Image

from llava.data.prompts import OPTIONS, join_options
from llava.toy.drawing import (
    BLACK,
    COLOURS,
    SIZE,
    WHITE,
    Colour,
    Point,
    Sample,
    box,
    canvas,
    finish,
    pick,
    regular_polygon,
    sample,
    scaled,
)

LINE = 7  # pen width on the oversampled canvas

Figure = tuple[Image.Image, str, str, tuple[str, ...]]  # picture, question, answer, all options


def draw(rng: np.random.Generator, index: int) -> Sample:
    """Figure number `index`; the kinds of question take turns."""
    kind = list(_KINDS)[index % len(_KINDS)]
    image, question, answer, options = _KINDS[kind](rng)
    prompt = OPTIONS.format(question=question, options=join_options([str(o) for o in rng.permutation(options)]))
    return sample(finish(image), prompt, answer, kind)


def _angle(rng: np.random.Generator) -> Figure:
    answer = pick(rng, ["acute", "right", "obtuse"])
    size = {"acute": rng.uniform(25, 65), "right": 90.0, "obtuse": rng.uniform(115, 155)}[answer]
    start = rng.uniform(0, 360)
    corner = _towards((SIZE / 2, SIZE / 2), start + size / 2, -10)
    image, pen = canvas(WHITE)
    ends = [_towards(corner, start, 30), _towards(corner, start + size, 30)]
    pen.line(scaled([ends[0], corner, ends[1]]), fill=_ink(rng), width=LINE, joint="curve")
    pen.arc(box(corner, 9), start, start + size, fill=_ink(rng), width=LINE - 2)
    return image, "What kind of angle is marked?", answer, ("acute", "right", "obtuse")


def _sides(rng: np.random.Generator) -> Figure:
    sides = int(rng.integers(3, 7))
    image, pen = canvas(WHITE)
    centre = (SIZE / 2 + rng.uniform(-4, 4), SIZE / 2 + rng.uniform(-4, 4))
    corners = regular_polygon(centre, rng.uniform(15, 22), sides, rng.uniform(0, 2 * math.pi))
    pen.polygon(scaled(corners), fill=_ink(rng))
    others = [str(k) for k in range(3, 7) if k != sides]
    del others[int(rng.integers(len(others)))]
    return image, "How many sides does the figure have?", str(sides), (str(sides), *others)


def _shaded(rng: np.random.Generator) -> Figure:
    quarters = int(rng.integers(1, 4))
    image, pen = canvas(WHITE)
    centre = (SIZE / 2 + rng.uniform(-4, 4), SIZE / 2 + rng.uniform(-4, 4))
    radius, start = rng.uniform(16, 22), 90 * int(rng.integers(4))
    pen.pieslice(box(centre, radius), start, start + 90 * quarters, fill=_ink(rng))
    pen.ellipse(box(centre, radius), outline=BLACK, width=LINE - 2)
    names = ("1/4", "1/2", "3/4")
    return image, "What part of the circle is shaded?", names[quarters - 1], names


def _towards(origin: Point, degrees: float, length: float) -> Point:
    return origin[0] + length * math.cos(math.radians(degrees)), origin[1] + length * math.sin(math.radians(degrees))


def _ink(rng: np.random.Generator) -> Colour:
    return COLOURS[pick(rng, [name for name in COLOURS if name != "yellow"])]


_KINDS: dict[str, Callable[[np.random.Generator], Figure]] = {"angle": _angle, "sides": _sides, "shaded": _shaded}
