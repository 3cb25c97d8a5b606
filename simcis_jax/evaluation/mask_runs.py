"""Masks as run-length encodings (RLE) of COCO, made without unpacking or looping over pixels.

RLE lists the lengths of the alternating runs of 0 and 1, column by column; the first run is of 0.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from pycocotools import mask as coco

RLE = dict[str, Any]  # {'size': [H, W], 'counts': bytes}


def packed_edges(masks: jax.Array) -> jax.Array:
    """Marks where the runs of masks [K, H, W] bool begin and end; traced.

    Returns:
        [K, W, ceil(H / 8)] uint8, one bit per pixel, column by column: 1 = differs from the pixel
        before. A column has 8 * ceil(H / 8) pixels, of which those beyond H are 0.
    """
    columns = jnp.pad(jnp.swapaxes(masks, 1, 2), ((0, 0), (0, 0), (0, -masks.shape[1] % 8)))
    before = jnp.roll(columns[..., -1], 1, axis=1).at[:, 0].set(False)  # Of a column's first pixel.
    shifted = jnp.concatenate([before[..., None], columns[..., :-1]], axis=-1)
    return jnp.packbits(columns ^ shifted, axis=-1)


def encode_edges(edges: np.ndarray, shape: tuple[int, int]) -> list[RLE]:
    """Encodes masks [K] that lie within `shape` = (H, W) of the canvas of `packed_edges`.

    Args:
        edges: [K, canvas width, ceil(canvas height / 8)] of `packed_edges`.
        shape: H, W of the image, at most those of the canvas.
    """
    num_masks, width, num_bytes = edges.shape
    height = 8 * num_bytes  # Of the columns.
    # A mask has few edges, so most bytes are 0.
    byte = np.flatnonzero(edges.ravel() != 0)
    bit = np.flatnonzero(np.unpackbits(edges.ravel()[byte]).view(bool))
    column, row = np.divmod(8 * byte[bit // 8] + bit % 8, height)
    owner, column = np.divmod(column, width)
    # The end of a run at the lower border is the first pixel of the next column.
    positions = column * shape[0] + np.minimum(row, shape[0])
    bounds = np.searchsorted(owner, np.arange(num_masks + 1))
    return [_encode(positions[a:b], shape) for a, b in itertools.pairwise(bounds)]


def encode_segments(segment_map: np.ndarray, segments: Sequence[int]) -> list[RLE]:
    """Encodes the masks `segment_map == segment` of some segments of a map [H, W]."""
    columns = segment_map.T.ravel()
    starts = np.flatnonzero(np.diff(columns, prepend=columns[:1] - 1))
    ends, ids = np.append(starts[1:], columns.size), columns[starts]
    runs = [np.flatnonzero(ids == segment) for segment in segments]
    positions = [np.stack([starts[run], ends[run]], axis=1).ravel() for run in runs]
    return [_encode(part, segment_map.shape) for part in positions]


def _encode(positions: np.ndarray, shape: tuple[int, int]) -> RLE:
    """The RLE of a mask whose value changes at these ascending positions, column by column."""
    # A run that ends where the next begins, at the border of two columns, goes on.
    repeats = (np.diff(positions, prepend=-1) == 0) | (np.diff(positions, append=-1) == 0)
    positions = positions[~repeats]
    size = shape[0] * shape[1]
    counts = np.diff(positions, prepend=0, append=size)
    if len(counts) > 1 and counts[-1] == 0:
        counts = counts[:-1]
    return coco.frPyObjects({'size': list(shape), 'counts': counts.tolist()}, *shape)
