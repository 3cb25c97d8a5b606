"""The interface of data sets: a source is a sequence of panoptic examples."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Sequence
from typing import Protocol, runtime_checkable

import numpy as np

from simcis_jax import types


@dataclasses.dataclass(frozen=True)
class Example:
    """An image and its panoptic ground truth at its original size, as NumPy arrays."""

    image: np.ndarray  # [H, W, 3] uint8, RGB.
    segment_map: np.ndarray  # [H, W] int32, uint8 in a crop; 0 = void, k = segment k.
    labels: np.ndarray  # [n] int32, labels[k - 1] = class of segment k.
    crowd: np.ndarray  # [n] bool, whether a segment is a group of instances (iscrowd).
    image_id: str | int


@runtime_checkable
class Source(Protocol):
    """A data set with random access. Sources can be pickled, for use in worker processes."""

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

    def segments_of(self, index: int) -> Sequence[int]:
        """The class of every non-crowd segment in an image, without decoding it."""
        ...

    def size_of(self, index: int) -> tuple[int, int]:
        """Height and width of an image, without decoding it."""
        ...

    def check_files(self, index: int) -> None:
        """Checks that image and annotations exist and have the listed size, without decoding.

        Raises:
            FileError: a file is missing or cannot be read.
            InputError: a file has another size, or is not an image.
        """
        ...

    def image_bytes(self, index: int) -> int:
        """Size of the image file in bytes; for images without a file, their size as a PNG."""
        ...


def images_with(source: Source, classes: Iterable[int]) -> np.ndarray:
    """Indices [n] of the images with at least one segment of `classes`, ascending."""
    classes = frozenset(classes)
    hits = [i for i in range(len(source)) if not classes.isdisjoint(source.classes_of(i))]
    return np.asarray(hits, np.int64)
