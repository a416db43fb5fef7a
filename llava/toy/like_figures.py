"""Pre-training pictures with one, four or nine cells, each with a shape, a corner or a partly filled disc.

They are near the geometry figures in what has to be seen, and differ in style, number and questions. Many cells and a
question that reads them all give a small model many answers to learn from per picture.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageDraw

from llava.toy.drawing import (
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
_SHAPES = {"circle": 0, "triangle": 3, "square": 4, "pentagon": 5, "hexagon": 6}
_ROWS, _COLUMNS = ("top", "middle", "bottom"), ("left", "centre", "right")


@dataclass(frozen=True)
class _Cell:
    """What is drawn in one cell: its name and colour (both empty: nothing), and where."""

    place: str
    name: str = ""
    colour: str = ""

    def __str__(self) -> str:
        return f"{self.colour} {self.name}" if self.name else "empty"


@dataclass(frozen=True)
class _Kind:
    """A kind of things: their names, what one is called, and how to draw the one of a name."""

    names: tuple[str, ...]
    noun: str
    paint: Callable[[np.random.Generator, ImageDraw.ImageDraw, str, Colour, Point, float], None]


def ground(rng: np.random.Generator) -> tuple[Image.Image, ImageDraw.ImageDraw]:
    """An empty oversampled canvas of a random light colour."""
    return canvas(GROUNDS[int(rng.integers(len(GROUNDS)))])


def draw_shapes(rng: np.random.Generator) -> Sample:
    """Filled shapes."""
    return _draw(rng, _Kind(tuple(_SHAPES), "shape", _paint_shape), max_side=3)


def draw_corners(rng: np.random.Generator) -> Sample:
    """Two thick strokes that meet in a corner."""
    return _draw(rng, _Kind(("acute", "right", "obtuse"), "corner", _paint_corner), max_side=2)


def draw_pies(rng: np.random.Generator) -> Sample:
    """Discs of which a part has another colour."""
    return _draw(rng, _Kind(("1/4", "1/2", "3/4"), "disc", _paint_pie), max_side=2)


def _draw(rng: np.random.Generator, kind: _Kind, max_side: int) -> Sample:
    image, pen = ground(rng)
    side = int(rng.integers(1, max_side + 1))
    width = SIZE / side
    cells = []
    for number in range(side * side):
        row, column = divmod(number, side)
        place = _place(row, column, side)
        if side > 1 and rng.random() < 0.15:
            cells.append(_Cell(place))
            continue
        cell = _Cell(place, pick(rng, kind.names), pick(rng, list(COLOURS)))
        radius = rng.uniform(0.28, 0.44) * width
        slack = width / 2 - radius
        centre = ((column + 0.5) * width + rng.uniform(-slack, slack), (row + 0.5) * width + rng.uniform(-slack, slack))
        kind.paint(rng, pen, cell.name, COLOURS[cell.colour], centre, radius)
        cells.append(cell)
    return conversation(rng, finish(image), _rounds(rng, kind, cells, side))


def _rounds(rng: np.random.Generator, kind: _Kind, all_cells: Sequence[_Cell], side: int) -> list[Round]:
    listed = "; ".join(map(str, all_cells))
    cells = [cell for cell in all_cells if cell.name]
    named = [cell.name for cell in cells]
    asked = pick(rng, kind.names)
    colour = pick(rng, list(COLOURS))
    rounds = [
        Round("Read the picture.\nAnswer:", listed, f"{kind.noun}_list"),
        Round(f"How many times is there {asked}?\nAnswer:", str(named.count(asked)), f"{kind.noun}_count"),
        Round(f"Is there a {colour} {kind.noun}? Yes or No?\nAnswer:", _yes(colour, cells), "has_colour"),
        Round(f"How many {kind.noun}s are there?\nAnswer:", str(len(cells)), "cell_count"),
    ]
    if cells:
        cell = cells[int(rng.integers(len(cells)))]
        where = f" {cell.place}" if side > 1 else ""
        options = [str(name) for name in rng.permutation(kind.names)]
        if len(options) > 3:
            others = [name for name in options if name != cell.name][:2]
            options = [str(name) for name in rng.permutation([cell.name, *others])]
        choice = f"Options: {'; '.join(options[:-1])} or {options[-1]}"
        rounds += [
            Round(f"Which {kind.noun} is it{where}? {choice}\nAnswer:", cell.name, kind.noun),
            Round(f"What colour is the {kind.noun}{where}?\nAnswer:", cell.colour, "colour"),
        ]
        if kind.noun == "shape" and cell.name != "circle":
            rounds.append(Round(f"Count the corners{where}.", str(_SHAPES[cell.name]), "corners_of"))
        if named.count(cell.name) == 1 and side > 1:
            rounds.append(Round(f"Where is the {cell.name} {kind.noun}?\nAnswer:", cell.place, "place"))
    return rounds


def _yes(colour: str, cells: Sequence[_Cell]) -> str:
    return "Yes" if any(cell.colour == colour for cell in cells) else "No"


def _place(row: int, column: int, side: int) -> str:
    if side == 1:
        return ""
    step = 2 if side == 2 else 1
    return f"{_ROWS[row * step]} {_COLUMNS[column * step]}"


def _paint_shape(
    rng: np.random.Generator, pen: ImageDraw.ImageDraw, name: str, colour: Colour, centre: Point, radius: float
) -> None:
    if name == "circle":
        pen.ellipse(box(centre, radius), fill=colour)
        return
    pen.polygon(scaled(regular_polygon(centre, radius, _SHAPES[name], rng.uniform(0, 2 * math.pi))), fill=colour)


def _paint_corner(
    rng: np.random.Generator, pen: ImageDraw.ImageDraw, name: str, colour: Colour, centre: Point, radius: float
) -> None:
    size = math.radians({"acute": rng.uniform(20, 60), "right": 90.0, "obtuse": rng.uniform(120, 160)}[name])
    start = rng.uniform(0, 2 * math.pi)
    middle = start + size / 2
    tip = (centre[0] - 0.4 * radius * math.cos(middle), centre[1] - 0.4 * radius * math.sin(middle))
    ends = [(tip[0] + 1.2 * radius * math.cos(a), tip[1] + 1.2 * radius * math.sin(a)) for a in (start, start + size)]
    width = round(rng.uniform(0.35, 0.7) * radius) + 4
    pen.line(scaled([ends[0], tip, ends[1]]), fill=colour, width=width, joint="curve")


def _paint_pie(
    rng: np.random.Generator, pen: ImageDraw.ImageDraw, name: str, colour: Colour, centre: Point, radius: float
) -> None:
    part = {"1/4": 90, "1/2": 180, "3/4": 270}[name]
    start = rng.uniform(0, 360)
    grey = int(rng.integers(120, 180))
    pen.ellipse(box(centre, radius), fill=(grey, grey, grey))
    pen.pieslice(box(centre, radius), start, start + part, fill=colour)
