"""Segmentations as pictures a person can read: overlays, and grids of them beside the truth."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from pathlib import Path

import cv2
import numpy as np

from simcis_jax.types import Categories

INK, PAPER = (40, 44, 52), (255, 255, 255)
# Mixes a thing's class colour with white (positive) or black, so that neighbours can be told apart.
SHADES = (0.0, 0.38, -0.3, 0.2, -0.15, 0.55, -0.45)
FONT = cv2.FONT_HERSHEY_DUPLEX
SUPERSAMPLING = 4  # Text is drawn this much larger and shrunk: vector fonts are rough when small.


def overlay(
    image: np.ndarray,
    segment_map: np.ndarray,
    labels: Sequence[int],
    categories: Categories,
    *,
    alpha: float = 0.6,
    min_side: int = 256,
) -> np.ndarray:
    """Paints segments over an image: class colours, outlines between segments, class names.

    Args:
      image: [H, W, 3] uint8, RGB.
      segment_map: [H, W] integer; 0 = nothing, k = segment with class `labels[k - 1]`.
      labels: [K], classes; -1 = no segment.
      categories: names, colours and which classes are things (whose shades vary).
      alpha: opacity of the colours.
      min_side: smaller images are enlarged by a whole factor until no side is shorter.

    Returns:
      [H', W', 3] uint8, RGB.
    """
    factor = max(1, -(-min_side // min(image.shape[:2])))
    size = (image.shape[1] * factor, image.shape[0] * factor)
    image = cv2.resize(image, size, interpolation=cv2.INTER_CUBIC)
    segment_map = cv2.resize(
        segment_map.astype(np.int32), size, interpolation=cv2.INTER_NEAREST
    )
    labels = np.asarray(labels, np.int64)

    colors = np.zeros((len(labels) + 1, 3))
    opacity = np.zeros(len(labels) + 1)
    shades = [itertools.cycle(SHADES) for _ in range(len(categories))]
    for segment in _drawn_segments(segment_map, labels):
        label = labels[segment - 1]
        shade = next(shades[label]) if categories.is_thing[label] else 0.0
        colors[segment] = _shaded(categories.colors[label], shade)
        opacity[segment] = alpha
    weight = opacity[segment_map][..., None]
    picture = (1 - weight) * image + weight * colors[segment_map]
    picture = np.clip(picture, 0, 255).round().astype(np.uint8)

    edges = _edges(segment_map)
    picture[edges] = (0.25 * picture[edges] + 0.75 * np.array(PAPER)).round()
    _write_names(picture, segment_map, labels, categories)
    return picture
