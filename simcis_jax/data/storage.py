"""How many bytes an image takes where images are stored to be replayed."""

from __future__ import annotations

from collections.abc import Collection

import cv2
import numpy as np

from simcis_jax.data.source import Example, Source


def png_bytes(picture: np.ndarray) -> int:
    """Bytes of a picture [H, W] or [H, W, 3], uint8 or uint16, as a PNG."""
    return len(cv2.imencode('.png', picture)[1])


def label_bytes(example: Example, classes: Collection[int]) -> int:
    """Bytes of the segments of `classes`: their map as a PNG, and a label for each."""
    kept = np.isin(example.labels, list(classes)) & ~example.crowd
    slots = np.append(0, np.where(kept, np.cumsum(kept), 0))
    kind = np.uint8 if kept.sum() <= 255 else np.uint16
    return png_bytes(slots.astype(kind)[example.segment_map]) + example.labels[kept].nbytes


def stored_bytes(source: Source, index: int, classes: Collection[int]) -> int:
    """Bytes of an image file as it is, and of its labels as far as they are of `classes`."""
    return source.image_bytes(index) + label_bytes(source[index], classes)
