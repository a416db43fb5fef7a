"""Drawing helpers shared by the demo sets: antialiased shapes, soft blobs, noise and a tiny digit font.

Everything is a function of the `numpy.random.Generator` that is passed in, so a picture depends on its seed alone.
Pictures are `SIZE` pixels square; shapes are drawn `OVERSAMPLING` times larger and averaged down.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from PIL import Image, ImageDraw

SIZE = 56
OVERSAMPLING = 4
MOST_ROUNDS = 4
GREY_LEVELS = 16  # noise in 256 levels would triple the size of the PNG files

Colour = tuple[int, int, int]
Point = tuple[float, float]

COLOURS: dict[str, Colour] = {
    "red": (215, 40, 40),
    "green": (40, 160, 60),
    "blue": (45, 80, 210),
    "yellow": (235, 205, 50),
    "purple": (150, 60, 170),
    "orange": (240, 135, 30),
}
BLACK: Colour = (20, 20, 20)
WHITE: Colour = (250, 250, 250)

# Three columns by five rows, one string per row; legible at the resolution of the demo charts.
_DIGITS = {
    "0": "### #.# #.# #.# ###",
    "1": ".#. ##. .#. .#. ###",
    "2": "### ..# ### #.. ###",
    "3": "### ..# ### ..# ###",
    "4": "#.# #.# ### ..# ..#",
    "5": "### #.. ### ..# ###",
    "6": "### #.. ### #.# ###",
    "7": "### ..# ..# .#. .#.",
    "8": "### #.# ### #.# ###",
    "9": "### #.# ### ..# ###",
}


@dataclass(frozen=True)
class Round:
    """One question and its answer; `kind` names the question type."""

    prompt: str
    answer: str
    kind: str


@dataclass(frozen=True)
class Sample:
    """One picture with a conversation about it; the first prompt starts with the `<image>` tag."""

    image: Image.Image
    rounds: tuple[Round, ...]


def sample(image: Image.Image, prompt: str, answer: str, kind: str) -> Sample:
    """A picture with a single question."""
    return Sample(image, (Round(prompt, answer, kind),))


def conversation(rng: np.random.Generator, image: Image.Image, rounds: Sequence[Round]) -> Sample:
    """A picture with up to `MOST_ROUNDS` of the given questions in random order, the tag in front of the first.

    The first of `rounds` is always among them.
    """
    others = 1 + rng.permutation(len(rounds) - 1)[: MOST_ROUNDS - 1]
    chosen = [rounds[int(k)] for k in rng.permutation([0, *others])]
    chosen[0] = replace(chosen[0], prompt=f"<image>\n{chosen[0].prompt}")
    return Sample(image, tuple(chosen))


def sample_rng(seed: int, *path: int) -> np.random.Generator:
    """The generator of one sample; equal numbers give equal pictures, whatever else was drawn before."""
    return np.random.default_rng([seed, *path])


def pick(rng: np.random.Generator, options: Sequence[str]) -> str:
    """One of `options` with equal chances."""
    return options[int(rng.integers(len(options)))]


def canvas(colour: Colour = WHITE) -> tuple[Image.Image, ImageDraw.ImageDraw]:
    """An oversampled picture and its pen; coordinates for the pen are pixels times `OVERSAMPLING`."""
    image = Image.new("RGB", (SIZE * OVERSAMPLING, SIZE * OVERSAMPLING), colour)
    return image, ImageDraw.Draw(image)


def finish(image: Image.Image) -> Image.Image:
    """Average an oversampled picture down to `SIZE` pixels."""
    return image.reduce(OVERSAMPLING)


def scaled(points: Sequence[Point]) -> list[Point]:
    """Pixel coordinates as coordinates on the oversampled canvas."""
    return [(x * OVERSAMPLING, y * OVERSAMPLING) for x, y in points]


def box(centre: Point, radius: float) -> list[Point]:
    """Bounding box on the oversampled canvas of a circle given in pixels."""
    return scaled([(centre[0] - radius, centre[1] - radius), (centre[0] + radius, centre[1] + radius)])


def regular_polygon(centre: Point, radius: float, sides: int, angle: float) -> list[Point]:
    """Corners of a regular polygon in pixels; `angle` in radians turns it."""
    corners = [angle + 2 * math.pi * k / sides for k in range(sides)]
    return [(centre[0] + radius * math.cos(a), centre[1] + radius * math.sin(a)) for a in corners]


def draw_number(image: Image.Image, corner: tuple[int, int], text: str) -> None:
    """Write black digits with the tiny font on a finished picture; `corner` is the upper left pixel."""
    for position, digit in enumerate(text):
        for y, row in enumerate(_DIGITS[digit].split()):
            for x, cell in enumerate(row):
                if cell == "#":
                    image.putpixel((corner[0] + 4 * position + x, corner[1] + y), BLACK)


def grid() -> tuple[np.ndarray, np.ndarray]:
    """Pixel centres (x, y), each float64 of shape [SIZE, SIZE]."""
    y, x = np.mgrid[0:SIZE, 0:SIZE] + 0.5
    return x, y


def ellipse_mask(centre: Point, radius_x: float, radius_y: float, angle: float = 0.0, soft: float = 1.0) -> np.ndarray:
    """1 inside a turned ellipse, 0 outside, with an edge about `soft` pixels wide; [SIZE, SIZE]."""
    x, y = grid()
    dx, dy = x - centre[0], y - centre[1]
    u = (dx * math.cos(angle) + dy * math.sin(angle)) / radius_x
    v = (-dx * math.sin(angle) + dy * math.cos(angle)) / radius_y
    distance = (np.hypot(u, v) - 1.0) * min(radius_x, radius_y)
    return 1.0 / (1.0 + np.exp(np.clip(4.0 * distance / soft, -30.0, 30.0)))


def smooth_noise(rng: np.random.Generator, cells: int) -> np.ndarray:
    """Slowly varying texture of mean about 0 and spread about 1, from a `cells` x `cells` random grid; [SIZE, SIZE]."""
    coarse = Image.fromarray(rng.standard_normal((cells, cells)).astype(np.float32), mode=None)
    return np.asarray(coarse.resize((SIZE, SIZE), Image.Resampling.BICUBIC), dtype=np.float64)


def grey_image(values: np.ndarray) -> Image.Image:
    """Brightness in 0..255, [SIZE, SIZE], as a greyscale picture of `GREY_LEVELS` levels."""
    step = 255.0 / (GREY_LEVELS - 1)
    levels = np.clip(np.round(values / step), 0, GREY_LEVELS - 1) * step
    return Image.fromarray(np.round(levels).astype(np.uint8))


def fingerprint(image: Image.Image) -> str:
    """Hash of the pixels as RGB; two splits overlap when a fingerprint is in both."""
    return hashlib.sha256(image.convert("RGB").tobytes()).hexdigest()
