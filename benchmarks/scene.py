"""Synthetic images and segments, the same for both sides. Needs NumPy only."""

from __future__ import annotations

import dataclasses

import numpy as np

from benchmarks.row import Settings


@dataclasses.dataclass(frozen=True)
class Scene:
    """Noise images tiled by segments; all images of a batch have the same segments."""

    images: np.ndarray  # [B, H, W, 3] uint8.
    segment_map: np.ndarray  # [H, W] uint8; 0 = void, k = segment k - 1.
    labels: np.ndarray  # [targets] int32, from the current classes (the second half).
    boxes: np.ndarray  # [targets, 4] float32: cx, cy, w, h in [0, 1].


def make_scene(settings: Settings) -> Scene:
    """A scene of equal rectangles in four columns."""
    columns, rows = 4, -(-settings.targets // 4)
    y, x = (np.arange(settings.size) * n // settings.size for n in (rows, columns))
    tiles = y[:, None] * columns + x
    row, column = np.divmod(np.arange(settings.targets), columns)
    centres = (column + 0.5) / columns, (row + 0.5) / rows
    sides = np.full((2, settings.targets), [[1 / columns], [1 / rows]])
    past = settings.classes // 2
    shape = settings.batch, settings.size, settings.size, 3
    return Scene(
        images=np.random.default_rng(0).integers(0, 256, shape, np.uint8),
        segment_map=np.where(tiles < settings.targets, tiles + 1, 0).astype(np.uint8),
        labels=(past + np.arange(settings.targets) % (settings.classes - past)).astype(np.int32),
        boxes=np.stack([*centres, *sides], axis=1).astype(np.float32),
    )
