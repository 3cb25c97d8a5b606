"""Scenes of the Shapes data set: the classes, and where each outline is placed."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import cv2
import numpy as np


@dataclasses.dataclass(frozen=True)
class ShapeClass:
    """Appearance of a class; the colour of a region varies randomly around this one."""

    name: str
    hue: float  # degrees
    saturation: float
    value: float
    is_thing: bool = True
    spin: float = np.pi  # Largest rotation from upright, in radians.


CLASSES = (
    ShapeClass('sky', 207, 0.38, 0.93, is_thing=False),
    ShapeClass('grass', 96, 0.60, 0.60, is_thing=False),
    ShapeClass('sand', 40, 0.36, 0.86, is_thing=False),
    ShapeClass('ball', 358, 0.82, 0.86),
    ShapeClass('house', 22, 0.55, 0.62, spin=0.1),
    ShapeClass('tree', 146, 0.72, 0.40, spin=0.12),
    ShapeClass('star', 52, 0.85, 0.98),
    ShapeClass('flower', 325, 0.62, 0.92),
    ShapeClass('water', 224, 0.72, 0.58, is_thing=False),
    ShapeClass('fish', 27, 0.92, 0.96, spin=0.6),
    ShapeClass('kite', 181, 0.80, 0.84, spin=0.8),
    ShapeClass('ring', 274, 0.62, 0.76),
)
STUFF = tuple(label for label, cls in enumerate(CLASSES) if not cls.is_thing)
THINGS = tuple(label for label, cls in enumerate(CLASSES) if cls.is_thing)


_STUFF_WEIGHTS = (0.32, 0.28, 0.26, 0.14)  # Water, a class of a later stage, is rarer.


@dataclasses.dataclass(frozen=True)
class Region:
    """A layer of an image: its coverage, and for things their coordinate frame."""

    label: int
    alpha: np.ndarray  # [H, W] float32, coverage in [0, 1].
    frame: np.ndarray | None = None  # [2, 3], maps pixels to the frame of radius 1


def draw_stuff(rng: np.random.Generator, size: int) -> list[Region]:
    """Two or three wavy bands from top to bottom; the third is sometimes a patch like a pond."""
    count = 2 + (rng.random() < 0.3)
    labels = rng.choice(STUFF, count, replace=False, p=_STUFF_WEIGHTS)
    labels = sorted(labels, key=lambda label: CLASSES[label].name != 'sky')  # Sky is above.
    y, x = np.mgrid[:size, :size].astype(np.float32) / size
    regions = [Region(labels[0], np.ones((size, size), np.float32))]
    borders = (np.arange(1, count) + rng.uniform(-0.3, 0.3, count - 1)) / count
    for label, border in zip(labels[1:], borders, strict=True):
        phases, slope = rng.uniform(0, 2 * np.pi, 3), rng.uniform(-0.25, 0.25)
        heights = rng.uniform(0.01, 0.06, 3) / (1, 1.5, 2.5)
        if count == 3 and label == labels[-1] and rng.random() < 0.5:
            center = rng.uniform((0.2, border - 0.05), (0.8, 0.9))
            dx, dy = (x - center[0]) / 1.5, y - center[1]
            angle = np.arctan2(dy, dx)
            radius = rng.uniform(0.16, 0.26) + sum(
                height * np.sin(wave * angle + phase)
                for wave, height, phase in zip((2, 3, 5), heights, phases, strict=True)
            )
            depth = radius - np.hypot(dx, dy)
        else:
            waves = sum(
                height * np.sin(wave * x[:1] + phase)
                for wave, height, phase in zip((5, 11, 23), heights, phases, strict=True)
            )
            depth = y - border - slope * (x - 0.5) - waves
        regions.append(Region(label, np.clip(depth * size + 0.5, 0, 1)))
    return regions


def draw_things(rng: np.random.Generator, size: int) -> list[Region]:
    """One to six things of random size, sometimes several of one class."""
    count = rng.choice(6, p=(0.12, 0.24, 0.26, 0.2, 0.12, 0.06)) + 1
    labels = rng.choice(THINGS, count)
    labels[1:] = np.where(rng.random(count - 1) < 0.2, labels[:-1], labels[1:])
    regions = []
    for label in labels:
        name, spin = CLASSES[label].name, CLASSES[label].spin
        radius = size * np.exp(rng.uniform(np.log(0.1), np.log(0.25)))
        angle, aspect = rng.uniform(-spin, spin), np.exp(rng.uniform(-0.15, 0.15))
        mirror = rng.choice((-1, 1))
        low, high = _ALTITUDES.get(name, (0.1, 0.9))
        center = size * rng.uniform((0.08, low), (0.92, high))
        cos, sin = np.cos(angle), np.sin(angle)
        axes = radius * np.array([[cos * mirror * aspect, -sin / aspect],
                                  [sin * mirror * aspect, cos / aspect]])  # fmt: skip
        # OpenCV takes fixed-point coordinates; `shift=4` means 4 fractional bits.
        contours = [
            np.round((points @ axes.T + center) * 16).astype(np.int32) for points in _OUTLINES[name]
        ]
        alpha = np.zeros((size, size), np.uint8)
        cv2.fillPoly(alpha, contours, 255, lineType=cv2.LINE_AA, shift=4)
        frame = cv2.invertAffineTransform(np.column_stack([axes, center])).astype(np.float32)
        regions.append(Region(label, alpha.astype(np.float32) / 255, frame))
    return regions


def _polar(radius: Callable[[np.ndarray], np.ndarray], count: int = 40) -> np.ndarray:
    """Points [count, 2] of the outline with the given radius as a function of the angle."""
    angle = np.arange(count) * (2 * np.pi / count)
    return radius(angle)[:, None] * np.stack([np.sin(angle), -np.cos(angle)], axis=1)


def _outlines() -> dict[str, list[np.ndarray]]:
    """The contours of every thing, [n, 2] each: x right, y down, radius about 1."""
    circle = _polar(np.ones_like)
    tree = [(0, -1.1), (0.5, -0.4), (0.28, -0.4), (0.68, 0.2), (0.4, 0.2), (0.85, 0.75),
            (0.15, 0.75), (0.15, 1.1)]  # fmt: skip
    fish = _polar(lambda angle: 0.85 / np.hypot(np.sin(angle), 1.7 * np.cos(angle)))
    fish = fish[fish[:, 0] > -0.62]
    fish = fish[np.argsort(np.arctan2(fish[:, 1], fish[:, 0]))]
    house = [(-0.8, 0.95), (0.8, 0.95), (0.8, -0.1), (1.05, -0.1), (0, -1), (-1.05, -0.1),
             (-0.8, -0.1)]  # fmt: skip
    return {
        'ball': [circle],
        'house': [np.array(house)],
        'tree': [np.array(tree + [(-x, y) for x, y in reversed(tree)])],
        'star': [_polar(lambda angle: np.where(np.arange(10) % 2, 0.45, 1.1), 10)],
        'flower': [_polar(lambda angle: 0.76 + 0.28 * np.cos(5 * angle), 60)],
        'fish': [np.concatenate([fish, [(-1.15, 0.6), (-1.0, 0), (-1.15, -0.6)]])],
        'kite': [np.array([(0, -1.0), (0.72, -0.25), (0, 1.15), (-0.72, -0.25)])],
        'ring': [circle, 0.5 * circle],
    }


_OUTLINES = _outlines()
_ALTITUDES = {  # Range of the centre's vertical position; 0 = top, 1 = bottom.
    'house': (0.3, 0.85), 'tree': (0.3, 0.85), 'star': (0.08, 0.7), 'kite': (0.08, 0.7),
}  # fmt: skip
