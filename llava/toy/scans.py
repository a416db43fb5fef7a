"""The yes / no task: a slice of a head, with or without a bright mass.

The head is a skull ring around tissue with texture, two dark ventricles and, in both classes, a few bright specks, so
that neither the brightest pixel nor the mean brightness gives the answer away: a mass is a wide soft blob.
"""

from __future__ import annotations

import math

import numpy as np

from llava.data.prompts import SCAN
from llava.toy.drawing import SIZE, Sample, ellipse_mask, grey_image, sample, smooth_noise


def draw_scan(rng: np.random.Generator, tumor: bool) -> Sample:
    """One scan, greyscale, [SIZE, SIZE]; the answer is Yes or No."""
    centre = (SIZE / 2 + rng.uniform(-2, 2), SIZE / 2 + rng.uniform(-2, 2))
    radius_x, radius_y = rng.uniform(18, 22), rng.uniform(21, 25)
    angle = rng.uniform(-0.25, 0.25)
    tissue = rng.uniform(75, 115)
    head = ellipse_mask(centre, radius_x, radius_y, angle)
    brain = ellipse_mask(centre, radius_x - 3, radius_y - 3, angle)
    values = rng.uniform(5, 20) + (rng.uniform(150, 205) - 10) * (head - brain)
    values += brain * (tissue + 7 * smooth_noise(rng, 8))
    values *= 1 - 0.55 * _ventricles(rng, centre, angle)
    for _ in range(int(rng.integers(0, 4))):
        values += rng.uniform(50, 90) * _inside(rng, centre, radius_x, radius_y, angle, rng.uniform(0.8, 1.5))
    if tumor:
        radius, contrast = rng.uniform(3.5, 7.0), rng.uniform(45, 95)
        values += contrast * _inside(rng, centre, radius_x, radius_y, angle, radius)
    values += rng.normal(0, 5, values.shape)
    return sample(grey_image(values), SCAN, "Yes" if tumor else "No", "scan")


def draw(rng: np.random.Generator, index: int) -> Sample:
    """Scan number `index`; even numbers have a mass, so every even-sized split is balanced."""
    return draw_scan(rng, tumor=index % 2 == 0)


def _ventricles(rng: np.random.Generator, centre: tuple[float, float], angle: float) -> np.ndarray:
    gap, height, width = rng.uniform(2.5, 4.0), rng.uniform(4, 7), rng.uniform(1.5, 2.5)
    tilt = angle + rng.uniform(0.1, 0.3)
    left = ellipse_mask((centre[0] - gap, centre[1]), width, height, tilt, soft=2)
    right = ellipse_mask((centre[0] + gap, centre[1]), width, height, -tilt, soft=2)
    return np.maximum(left, right)


def _inside(
    rng: np.random.Generator, centre: tuple[float, float], radius_x: float, radius_y: float, angle: float, radius: float
) -> np.ndarray:
    """A soft blob of the given radius, wholly inside the brain; [SIZE, SIZE], peak near 1."""
    direction, reach = rng.uniform(0, 2 * math.pi), math.sqrt(rng.uniform(0.05, 1))
    u = reach * (radius_x - 4.5 - radius) * math.cos(direction)
    v = reach * (radius_y - 4.5 - radius) * math.sin(direction)
    where = (
        centre[0] + u * math.cos(angle) - v * math.sin(angle),
        centre[1] + u * math.sin(angle) + v * math.cos(angle),
    )
    stretch = rng.uniform(0.8, 1.25)
    return ellipse_mask(where, radius * stretch, radius / stretch, rng.uniform(0, math.pi), soft=max(1.0, radius / 2))
