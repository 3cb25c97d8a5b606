"""Class-proportional image memory (BalConpas): classes keep their shares of segments.

The next image is always the one after which the shares of the classes among the segments of the
memory are nearest to those among all segments that the stages have shown.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import numpy as np

from simcis_jax.continual.image_memory import ReplayPool


def class_proportional(pool: ReplayPool) -> Iterator[int]:
    """Yields the images of a pool in the order of preference.

    First come images that were kept, so many that their share of the memory is that of the past
    classes, then new images, and then what is left. Of equals, the lowest rank comes first.

    Args:
        pool: with `num_images` and `counts_of`.
    """
    candidates = pool.candidates

    def count(index: int, labels: frozenset[int]) -> np.ndarray:
        """The number of labelled segments [C] of every class in an image."""
        counts, columns = pool.counts_of(index), list(labels)
        labelled = np.zeros_like(counts)
        labelled[columns] = counts[columns]
        return labelled

    def by_rank(images: Iterable[int]) -> dict[int, np.ndarray]:
        """The counts of images, in the order of their ranks."""
        ordered = sorted(images, key=lambda index: pool.ranks[index])
        return {index: count(index, candidates[index]) for index in ordered}

    shown = sum(count(*image) for images in pool.shown for image in images.items())
    old, new = by_rank(pool.kept), by_rank(pool.new.keys() - pool.kept.keys())
    share = pool.num_images * len(pool.stage.past) // len(pool.stage.seen)
    total = np.zeros_like(shown)
    for images, number in ((old, share), (new, len(new)), (old, len(old))):
        yield from nearest_first(images, number, total, shown / shown.sum())


def nearest_first(
    images: dict[int, np.ndarray], number: int, total: np.ndarray, target: np.ndarray
) -> Iterator[int]:
    """Yields `number` images, removes them from `images` and adds their counts to the total [C].

    The next image is the first of those after which the shares of the total are nearest to the
    target [C].
    """
    indices, counts = list(images), np.array(list(images.values()))
    sizes, taken = counts.sum(axis=-1), np.zeros(len(indices), bool)
    for _ in range(min(number, len(indices))):
        shares = (total + counts) / (total.sum() + sizes)[:, None]
        shares -= target  # In place, because there may be many images.
        distances = np.abs(shares, out=shares).sum(axis=1)
        nearest = int(np.argmin(np.where(taken, np.inf, distances)))
        taken[nearest] = True
        total += counts[nearest]
        del images[indices[nearest]]
        yield indices[nearest]
