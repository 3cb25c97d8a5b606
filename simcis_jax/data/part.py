"""Parts of a split: images that are held out of training, or fewer images of the same kind."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from simcis_jax.data.source import Example, Source
from simcis_jax.errors import InputError


def hold_out(source: Source, every: int) -> tuple[Source, Source]:
    """Splits a source into the images to train on and every n-th image, to evaluate on.

    Args:
        source: a training split.
        every: n, at least 2. Images n - 1, 2n - 1, ... are held out.

    Raises:
        InputError: the source has fewer than n images.
    """
    if len(source) < every:
        raise InputError(
            f'data.hold_out={every} leaves nothing to evaluate: {source.name!r} has '
            f'{len(source)} images; choose a smaller number.'
        )
    is_held_out = np.arange(len(source)) % every == every - 1
    return (
        _Part(source, np.flatnonzero(~is_held_out), 'kept'),
        _Part(source, np.flatnonzero(is_held_out), 'held out'),
    )


def spread(indices: np.ndarray, number: int) -> np.ndarray:
    """At most `number` of the indices, spread evenly: neighbours are often frames of one video."""
    number = min(number, len(indices))
    return indices[(np.arange(number) + 1) * len(indices) // max(number, 1) - 1]


def at_most(source: Source, number: int) -> Source:
    """At most this many images of a source, spread evenly; 0 = all of them."""
    if number == 0 or len(source) <= number:
        return source
    return _Part(source, spread(np.arange(len(source)), number), f'{number} images')


class _Part:
    """Some images of a source, as a `Source` whose index i is image indices[i] of the whole."""

    def __init__(self, whole: Source, indices: np.ndarray, kind: str):
        self.name = f'{whole.name}, {kind}'
        self.categories = whole.categories
        self._whole = whole
        self._indices = indices.tolist()

    def __len__(self) -> int:
        return len(self._indices)

    def __getitem__(self, index: int) -> Example:
        return self._whole[self._indices[index]]

    def classes_of(self, index: int) -> frozenset[int]:
        return self._whole.classes_of(self._indices[index])

    def segments_of(self, index: int) -> Sequence[int]:
        return self._whole.segments_of(self._indices[index])

    def size_of(self, index: int) -> tuple[int, int]:
        return self._whole.size_of(self._indices[index])

    def check_files(self, index: int) -> None:
        self._whole.check_files(self._indices[index])

    def image_bytes(self, index: int) -> int:
        return self._whole.image_bytes(self._indices[index])
