"""Counts the bytes that a replayed image and its labels need in storage."""

from __future__ import annotations

from collections.abc import Collection

import cv2
import numpy as np

from simcis_jax.data.source import Example, Source


def png_bytes(picture: np.ndarray) -> int:
    """Size in bytes of an array [H, W] or [H, W, 3], uint8 or uint16, as a PNG."""
    return len(cv2.imencode('.png', picture)[1])


def label_bytes(example: Example, classes: Collection[int]) -> int:
    """Size in bytes of the segments of `classes`: their segment map as a PNG, and their labels."""
    kept = np.isin(example.labels, list(classes)) & ~example.crowd
    slots = np.append(0, np.where(kept, np.cumsum(kept), 0))
    kind = np.uint8 if kept.sum() <= 255 else np.uint16
    return png_bytes(slots.astype(kind)[example.segment_map]) + example.labels[kept].nbytes


def stored_bytes(source: Source, index: int, classes: Collection[int]) -> int:
    """Size in bytes of an image file and of its segments of `classes`."""
    return source.image_bytes(index) + label_bytes(source[index], classes)
