"""What every data set looks like to the rest: a source is a sequence of panoptic examples."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable
from typing import Protocol, runtime_checkable

import numpy as np

from simcis_jax import types


@dataclasses.dataclass(frozen=True)
class Example:
    """One image and its panoptic ground truth, as stored: numpy, no padding."""

    image: np.ndarray  # [H, W, 3] uint8, RGB.
    segment_map: np.ndarray  # [H, W] int32; 0 = void, k = segment k.
    labels: np.ndarray  # [n] int32, class of segment k at k - 1.
    crowd: np.ndarray  # [n] bool, segments that stand for a group of instances.
    image_id: str | int


@runtime_checkable
class Source(Protocol):
    """A data set with random access. Sources pickle, so that worker processes can read them."""

    name: str
    categories: types.Categories

    def __len__(self) -> int:
        """Number of images."""
        ...

    def __getitem__(self, index: int) -> Example:
        """The example at an index."""
        ...

    def classes_of(self, index: int) -> frozenset[int]:
        """Classes with at least one non-crowd segment in an image, without decoding it."""
        ...

    def size_of(self, index: int) -> tuple[int, int]:
        """Height and width of an image, without decoding it."""
        ...

    def check_files(self, index: int) -> None:
        """Checks, without decoding, that an image and its annotations exist at the listed size.

        Raises:
            FileError: a file is missing or cannot be read.
            InputError: it has another size, or is no picture.
        """
        ...

    def image_bytes(self, index: int) -> int:
        """Bytes of the image file; of an image that has none, as a PNG."""
        ...


def images_with(source: Source, classes: Iterable[int]) -> np.ndarray:
    """Indices [n] of the images that hold at least one segment of `classes`, in order."""
    classes = frozenset(classes)
    hits = [i for i in range(len(source)) if not classes.isdisjoint(source.classes_of(i))]
    return np.asarray(hits, np.int64)
