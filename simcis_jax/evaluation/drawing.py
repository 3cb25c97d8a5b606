"""Drawing functions for pictures: smooth outlines, text, and placement of class names."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import cv2
import numpy as np

INK, PAPER = (40, 44, 52), (255, 255, 255)


class Box(NamedTuple):
    """A rectangle of whole pixels."""

    left: int
    top: int
    width: int
    height: int


def by_area(segment_map: np.ndarray) -> list[int]:
    """The segments of a map [H, W] that have pixels, largest first."""
    areas = np.bincount(segment_map.ravel())
    order = 1 + np.argsort(-areas[1:], kind='stable')
    return [int(segment) for segment in order if areas[segment]]


def outlined(
    segment_map: np.ndarray, sigma: float, line_width: float
) -> tuple[np.ndarray, np.ndarray]:
    """The segment map [H, W] with smooth edges, and antialiased lines [H, W] in 0..1 along them.

    The mask of every segment is blurred and each pixel goes to the strongest one. Near an edge, the
    two strongest differ by twice the distance in pixels times the slope of a blurred step.

    Args:
        segment_map: [H, W] integer.
        sigma: of the blur, in pixels; more than half of `line_width`.
        line_width: in pixels.
    """
    margin = math.ceil(3 * sigma)
    strongest, second = np.zeros((2, *segment_map.shape), np.float32)
    smooth = np.zeros_like(segment_map)
    for segment in np.unique(segment_map):
        mask = segment_map == segment
        left, top, width, height = cv2.boundingRect(mask.astype(np.uint8))
        near = np.s_[
            max(top - margin, 0) : top + height + margin,
            max(left - margin, 0) : left + width + margin,
        ]
        strength = mask[near].astype(np.float32)
        strength = cv2.GaussianBlur(strength, (0, 0), sigma, borderType=cv2.BORDER_REPLICATE)
        wins = strength > strongest[near]
        second[near] = np.maximum(second[near], np.minimum(strength, strongest[near]))
        strongest[near][wins] = strength[wins]
        smooth[near][wins] = segment
    distance = (strongest - second) * sigma * math.sqrt(2 * math.pi) / 2
    return smooth, np.clip(line_width / 2 + 0.5 - distance, 0, 1)


def name_boxes(segment_map: np.ndarray, sizes: Sequence[tuple[int, int]]) -> dict[int, Box]:
    """Places the names of segments so that none touches another or leaves the picture.

    Larger segments come first; a name lies as close to the most interior point of its segment as
    there is room. A name that would lie mostly outside its segment is left out.

    Args:
        segment_map: [H, W] integer; 0 = nothing.
        sizes: width and height in pixels of the name of segment k, at k - 1.

    Returns:
        Segment -> box of its name.
    """
    free = np.zeros(segment_map.shape, np.uint8)
    free[2:-2, 2:-2] = 1
    boxes = {}
    for segment in by_area(segment_map):
        width, height = sizes[segment - 1]
        mask = (segment_map == segment).astype(np.uint8)
        if mask.sum() < 0.5 * width * height:
            continue
        # Centres of free boxes; the anchor of all filters is the middle of the box.
        room = cv2.erode(free, np.ones((height, width), np.uint8), borderValue=0)
        inside = cv2.boxFilter(mask, cv2.CV_32F, (width, height), borderType=cv2.BORDER_CONSTANT)
        depth = cv2.distanceTransform(np.pad(mask, 1), cv2.DIST_L2, 5)[1:-1, 1:-1]
        fitness = np.where(room & mask & (inside >= 0.6), inside + depth / depth.max(), 0)
        y, x = np.unravel_index(np.argmax(fitness), fitness.shape)
        if not fitness[y, x]:
            continue
        left, top = int(x) - width // 2, int(y) - height // 2
        boxes[segment] = Box(left, top, width, height)
        free[max(top - 2, 0) : top + height + 2, max(left - 2, 0) : left + width + 2] = 0
    return boxes


def text_color(background: Sequence[float]) -> tuple[int, int, int]:
    """Black or white, whichever contrasts more with an RGB colour: at least 4.5 to 1 (WCAG)."""
    channels = np.asarray(background) / 255
    linear = np.where(channels <= 0.04045, channels / 12.92, ((channels + 0.055) / 1.055) ** 2.4)
    luminance = linear @ [0.2126, 0.7152, 0.0722]
    return (0, 0, 0) if (luminance + 0.05) ** 2 > 0.05 * 1.05 else (255, 255, 255)


def text_height_for(width: int, height: int) -> int:
    """Text height in pixels that is readable when a picture of this size is as wide as a phone."""
    return max(11, round(min(width / 40, height / 12)))


def text_width(text: str, height: int) -> int:
    """Width in pixels of one line of text."""
    _, _, width, _ = cv2.getTextSize((0, 0), text, (0, 0), _font(), height, 500)
    return width


def write(picture: np.ndarray, text: str, box: Box, height: int, color: Sequence[int]) -> None:
    """Writes one line of text in the centre of a box, in place."""
    left = box.left + (box.width - text_width(text, height)) // 2
    baseline = box.top + round(box.height / 2 + 0.33 * height)
    cv2.putText(picture, text, (left, baseline), tuple(color), _font(), height, 500)


def fill_rounded(picture: np.ndarray, box: Box, color: Sequence[float]) -> None:
    """Fills a rectangle with rounded corners and a white rim, in place."""
    area = picture[box.top : box.top + box.height, box.left : box.left + box.width]
    # Distance of every pixel from a smaller rectangle; its level sets have rounded corners.
    radius = 0.25 * box.height
    x, y = (
        np.maximum(np.abs(np.arange(side) - (side - 1) / 2) - side / 2 + radius, 0)
        for side in (box.width, box.height)
    )
    distance = np.hypot(x, y[:, None])[..., None]
    rim = max(1.0, box.height / 24)
    for tone, edge in ((PAPER, radius), (color, radius - rim)):
        ink = np.clip(edge + 0.5 - distance, 0, 1)
        area[:] = ((1 - ink) * area + ink * np.asarray(tone)).round()


def _font() -> cv2.FontFace:
    return cv2.FontFace('sans')  # One per call: a font shared by threads draws garbage.
