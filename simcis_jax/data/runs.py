"""Runs of equal pixels: neighbours mostly share a segment, so maps are short lists of these."""

from __future__ import annotations

import numpy as np


def row_runs(picture: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Where the runs [n] of equal pixels begin in [H, W], and how long they are; rows end runs.

    Beginnings count pixels row by row: those of `picture.ravel()`.
    """
    begins = np.ones(picture.shape, bool)
    np.not_equal(picture[:, 1:], picture[:, :-1], out=begins[:, 1:])
    starts = np.flatnonzero(begins)
    return starts, np.diff(starts, append=picture.size)
