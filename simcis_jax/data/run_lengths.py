"""Run-length encoding of segment maps, whose neighbouring pixels are mostly equal."""

from __future__ import annotations

import numpy as np


def row_runs(picture: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Finds the runs of equal pixels in the rows of [H, W].

    Returns:
        start and length of each run, [n] each. Starts are indices into `picture.ravel()`; a run
        never continues in the next row.
    """
    pixels, begins = picture.ravel(), np.empty(picture.size, bool)
    np.not_equal(pixels[1:], pixels[:-1], out=begins[1:])
    begins.reshape(picture.shape)[:, 0] = True
    starts = np.flatnonzero(begins)
    return starts, np.diff(starts, append=picture.size)
