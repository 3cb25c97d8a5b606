"""Local POD, the pooled output distillation of PLOP (CVPR 2021).

A map is pooled along rows and along columns, in the whole image and in the cells of finer grids.
The loss therefore preserves the spatial statistics of the features, but not every single value.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import jax.numpy as jnp
from jax import Array

SCALES = (1, 2, 4)  # Cells along each side of the grids.


def pooled(features: Array) -> Array:
    """The means [B, E] of all rows and all columns of the cells of a map [B, h, w, D].

    Rows and columns that a grid cannot share evenly are left out, as are grids finer than the map.
    """

    def means() -> Iterator[Array]:
        batch_size, height, width, channels = features.shape
        for scale in SCALES:
            rows, columns = height // scale, width // scale
            if rows and columns:
                inside = features[:, : rows * scale, : columns * scale]
                cells = inside.reshape(batch_size, scale, rows, scale, columns, channels)
                yield cells.mean(axis=4).reshape(batch_size, -1)
                yield cells.mean(axis=2).reshape(batch_size, -1)

    return jnp.concatenate(list(means()), axis=1)


def local_pod(student: Sequence[Array], teacher: Sequence[Array]) -> Array:
    """Euclidean distance [B] between pooled maps [B, h, w, D] of both, averaged over the maps.

    Where they are equal, as at the start of a stage, its gradient is 0 instead of NaN.
    """
    distances = []
    for ours, theirs in zip(student, teacher, strict=True):
        square = ((pooled(ours) - pooled(theirs)) ** 2).sum(axis=1)
        differs = square > 0
        distances.append(jnp.where(differs, jnp.sqrt(jnp.where(differs, square, 1.0)), 0.0))
    return sum(distances) / len(distances)
