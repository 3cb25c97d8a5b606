"""Paints scenes of the Shapes data set: colour, texture, shadow and light."""

from __future__ import annotations

import colorsys

import cv2
import numpy as np

from simcis_jax.data.shapes_scene import CLASSES, THINGS, Region

_COLOR_CONFUSION = 0.12  # Probability that a thing has the colour of another class.


def rgb(hue: float, saturation: float, value: float) -> np.ndarray:
    """Converts HSV (degrees, 0..1, 0..1) to RGB [3] in 0..255."""
    saturation, value = np.clip([saturation, value], 0.0, 1.0)
    return np.asarray(colorsys.hsv_to_rgb(hue / 360 % 1.0, saturation, value), np.float32) * 255


def paint(rng: np.random.Generator, regions: list[Region], size: int) -> np.ndarray:
    """Paints regions from back to front and lights the image; returns [H, W, 3] uint8."""
    y, x = np.mgrid[:size, :size].astype(np.float32) / size
    toward = rng.uniform(-1, 1)  # Direction of the light, from left (-1) to right (1).
    image = np.zeros((size, size, 3), np.float32)
    for region in regions:
        cls = CLASSES[region.label]
        if cls.is_thing:
            _cast_shadow(image, region.alpha, toward, size)
            if rng.random() < _COLOR_CONFUSION:
                cls = CLASSES[rng.choice(THINGS)]
            rows = np.flatnonzero(region.alpha.any(axis=1))
            columns = np.flatnonzero(region.alpha.any(axis=0))
            window = np.s_[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
            # Coordinates u and v, [h, w] each, in which the shape has radius 1.
            px, py = x[window] * size, y[window] * size
            own = [row[0] * px + row[1] * py + row[2] for row in region.frame]
            texture = _paint_thing
        else:
            window, own, texture = np.s_[:, :], [x, y], _paint_stuff
        color = rgb(
            cls.hue + rng.normal(0, 7),
            cls.saturation + rng.normal(0, 0.07),
            cls.value + rng.normal(0, 0.05),
        )
        alpha = region.alpha[window][..., None]
        painted = texture(rng, CLASSES[region.label].name, color, *own)
        image[window] += alpha * (painted - image[window])
    gradient = rng.uniform(-0.12, 0.12)
    light = rng.uniform(0.88, 1.1) * (1 + 0.18 * toward * (x - 0.5) + gradient * (y - 0.5))
    warmth = rng.uniform(-0.06, 0.06)
    contrast = rng.uniform(0.85, 1.12)
    image *= light[..., None] * np.array([1 + warmth, 1, 1 - warmth], np.float32)
    image = 118 + contrast * (image - 118)
    image += rng.standard_normal(image.shape, dtype=np.float32) * rng.uniform(2, 5)
    return np.clip(image, 0, 255).astype(np.uint8)


def _cast_shadow(image: np.ndarray, alpha: np.ndarray, toward: float, size: int) -> None:
    """Darkens `image` in place next to a thing, on the side away from the light."""
    shift = np.float32([[1, 0, -0.03 * toward * size], [0, 1, 0.03 * size]])
    shadow = cv2.warpAffine(alpha, shift, (size, size))
    shadow = cv2.GaussianBlur(shadow, (0, 0), 0.02 * size)
    image *= (1 - 0.4 * shadow)[..., None]


def _noise(rng: np.random.Generator, shape: tuple[int, int], cells: tuple[int, int]) -> np.ndarray:
    """Smooth noise [H, W] of about unit variance, interpolated from cells[0] x cells[1] values."""
    coarse = rng.standard_normal(cells, dtype=np.float32)
    return cv2.resize(coarse, shape[::-1], interpolation=cv2.INTER_CUBIC)


def _paint_stuff(
    rng: np.random.Generator, name: str, color: np.ndarray, x: np.ndarray, y: np.ndarray
) -> np.ndarray:
    """The texture [H, W, 3] of a stuff class; x and y [H, W] range over 0..1."""
    shape = x.shape
    if name == 'sky':
        clouds = np.clip(_noise(rng, shape, (7, 4)) - 0.3, 0, 1)
        white = np.clip(0.8 * clouds + 0.35 * y, 0, 1)[..., None]
        return color + white * (np.float32([250, 250, 252]) - color)
    if name == 'grass':
        blades = 0.16 * _noise(rng, shape, (12, 48)) + 0.07 * _noise(rng, shape, (5, 5))
        return color * (1 + blades)[..., None]
    if name == 'sand':
        ripple = np.sin(38 * y + 5 * np.sin(4 * x + rng.uniform(0, 6)) + 9 * x)
        grain = 0.05 * _noise(rng, shape, (40, 40))
        return color * (1 + 0.05 * ripple + grain)[..., None]
    phase = rng.uniform(0, 6, 2)
    waves = np.sin(64 * y + 3 * np.sin(9 * x + phase[0]) + phase[1])
    crests = np.clip(waves - 0.45 + 0.4 * _noise(rng, shape, (10, 4)), 0, 1)[..., None]
    return color * (1 - 0.25 * (y - 0.5))[..., None] + 90 * crests


def _paint_thing(
    rng: np.random.Generator, name: str, color: np.ndarray, u: np.ndarray, v: np.ndarray
) -> np.ndarray:
    """The texture [h, w, 3] of a thing class; u (right) and v (down) range over -1..1."""
    radius = np.hypot(u, v)
    pale = 0.25 * color + 0.75 * np.float32([250, 246, 238])
    shade = 1 - 0.2 * v
    if name == 'ball':
        sectors = np.sin(3 * np.arctan2(v + 0.25, u + 0.2)) > 0
        body = np.where(sectors[..., None], pale, color)
        shade = np.clip(1.15 - 0.3 * np.hypot(u + 0.35, v + 0.4) ** 2, 0.5, None)
    elif name == 'house':
        bricks = 1 - 0.18 * ((np.sin(16 * v) > 0.55) | (np.sin(11 * u) > 0.9))
        body = 1.1 * color * bricks[..., None]
        body[v < -0.1] = 0.6 * color + np.float32([50, 0, 0])
        windows = (np.abs(np.abs(u) - 0.45) < 0.18) & (np.abs(v - 0.25) < 0.2)
        body[windows] = (225, 235, 200)
        body[(np.abs(u) < 0.16) & (v > 0.4)] = (70, 45, 35)
    elif name == 'tree':
        tiers = 1 + 0.3 * np.sin(10 * v + 3 * np.abs(u)) + 0.15 * _noise(rng, u.shape, (8, 8))
        body = color * tiers[..., None]
        body[v > 0.75] = (96, 66, 42)
    elif name == 'star':
        body = color + (0.6 * np.clip(0.8 - radius, 0, 1))[..., None] * (255 - color)
    elif name == 'flower':
        veins = 1 - 0.25 * np.clip(radius, 0, 1) * (np.cos(10 * np.arctan2(u, -v)) < 0)
        body = color * veins[..., None]
        body[radius < 0.32] = (246, 206, 70)
    elif name == 'fish':
        stripes = (np.sin(13 * u + 0.8) > 0.35) & (u < 0.35)
        body = np.where(stripes[..., None], pale, color)
        body[np.hypot(u - 0.55, v + 0.12) < 0.14] = (25, 25, 30)
    elif name == 'kite':
        body = np.where((u * (v + 0.25) > 0)[..., None], 0.55 * color, color)
        body[np.abs(u) < 0.06] = pale
    else:
        bands = np.sin(4 * np.arctan2(v, u)) > 0.3
        body = np.where(bands[..., None], pale, color)
        shade = shade * (1.1 - 1.2 * (radius - 0.72) ** 2)
    return body * shade[..., None].astype(np.float32)
