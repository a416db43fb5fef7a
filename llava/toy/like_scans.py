"""Pre-training pictures like the scans: an ellipse with bright and dark spots, no ventricles, other questions."""

from __future__ import annotations

import math

import numpy as np

from llava.toy.drawing import SIZE, Point, Round, Sample, conversation, ellipse_mask, grey_image, pick, smooth_noise

_WORDING = [
    "Is there {} in the picture? Yes or No?\nAnswer:",
    "Do you see {}? Yes or No?\nAnswer:",
    "Can you find {} in the ellipse? Yes or No?",
    "Does the picture show {}? Answer Yes or No.\nAnswer:",
]


def draw(rng: np.random.Generator) -> Sample:
    """An ellipse with or without a bright spot, a dark spot and a ring; tiny specks may be anywhere in it."""
    bright, dark, ring = (bool(rng.random() < chance) for chance in (0.5, 0.4, 0.5))
    scene = _Scene(rng, ring)
    spots = []
    if dark:
        spots.append(("dark", scene.add_large_spot(-1)))
    if bright:
        spots.append(("bright", scene.add_large_spot(+1)))
    listed = "; ".join(f"{name} {_side(where, scene.centre)}" for name, where in reversed(spots)) or "nothing"
    places = {name: _side(where, scene.centre) for name, where in spots}
    rounds = [
        Round("Read the picture.\nAnswer:", listed, "spot_list"),
        _yes_no(rng, pick(rng, ["a bright spot", "a light spot"]), bright, "bright_spot"),
        _yes_no(rng, "a dark spot", dark, "dark_spot"),
        _yes_no(rng, "a ring", ring, "ring"),
        Round("Where is the bright spot?\nAnswer:", places.get("bright", "nowhere"), "spot_side"),
        _overall(rng, scene),
    ]
    noise = rng.normal(0, rng.uniform(1, 7), scene.values.shape)
    return conversation(rng, grey_image(scene.values + noise), rounds)


class _Scene:
    """An ellipse of one grey on a ground of another, and what has been put on it."""

    def __init__(self, rng: np.random.Generator, ring: bool) -> None:
        self.rng = rng
        self.centre: Point = (SIZE / 2 + rng.uniform(-4, 4), SIZE / 2 + rng.uniform(-4, 4))
        self.radius_x, self.radius_y = rng.uniform(16, 24, 2)
        ground, inside = rng.uniform(0, 60), rng.uniform(60, 130)
        mask = ellipse_mask(self.centre, self.radius_x, self.radius_y)
        texture = rng.uniform(0, 8) * smooth_noise(rng, int(rng.integers(4, 10)))
        self.values = ground + (inside - ground + texture) * mask
        if ring:
            width = rng.uniform(1.5, 3.5)
            outer = ellipse_mask(self.centre, self.radius_x + width, self.radius_y + width)
            self.values += (rng.uniform(150, 230) - ground) * (outer - mask)
        for _ in range(int(rng.integers(0, 4))):
            self._add_spot(rng.uniform(40, 90), rng.uniform(0.7, 1.5))

    def add_large_spot(self, sign: int) -> Point:
        """A spot that questions ask for, and where it is."""
        return self._add_spot(sign * self.rng.uniform(45, 120), self.rng.uniform(3.0, 8.0))

    def _add_spot(self, contrast: float, radius: float) -> Point:
        direction, reach = self.rng.uniform(0, 2 * math.pi), math.sqrt(self.rng.uniform(0, 1))
        x = self.centre[0] + reach * (self.radius_x - 1 - radius) * math.cos(direction)
        y = self.centre[1] + reach * (self.radius_y - 1 - radius) * math.sin(direction)
        self.values += contrast * ellipse_mask((x, y), radius, radius, soft=self.rng.uniform(1, 4))
        return x, y


def _yes_no(rng: np.random.Generator, thing: str, there: bool, kind: str) -> Round:
    return Round(pick(rng, _WORDING).format(thing), "Yes" if there else "No", kind)


def _side(where: Point, centre: Point) -> str:
    """Quarter of the ellipse, as `top left`."""
    return f"{('top', 'bottom')[int(where[1] > centre[1])]} {('left', 'right')[int(where[0] > centre[0])]}"


def _overall(rng: np.random.Generator, scene: _Scene) -> Round:
    """Whether the whole picture is bright or dark; brightens it half of the time."""
    bright = bool(rng.random() < 0.3)
    if bright:
        scene.values = 95 + 0.6 * scene.values
    prompt = pick(rng, ["Is the picture bright or dark?", "Bright or dark?\nAnswer:"])
    return Round(prompt, "bright" if bright else "dark", "brightness")
