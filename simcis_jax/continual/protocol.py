"""Which images a stage trains on, and which of their classes it is told about."""

from __future__ import annotations

from collections.abc import Collection, Sequence

import numpy as np

from simcis_jax.continual.stages import Stage

# An image is in every stage that has one of its classes (the paper's setting); or only in the last
# of these, without or with the labels of classes that came before.
SETTINGS = ('overlapped', 'disjoint', 'sequential')


def stage_images(
    image_classes: Sequence[Collection[int]], stage: Stage, setting: str = 'overlapped'
) -> np.ndarray:
    """Indices [n] of the images that a stage trains on, in order.

    'disjoint' and 'sequential' keep the images whose classes have all arrived by this stage, one of
    them in it: every image is in one stage only (Michieli and Zanuttigh, ICCV workshops 2019).

    Args:
        image_classes: classes of every image.
        stage: the stage.
        setting: one of SETTINGS.
    """
    current, seen = frozenset(stage.current), frozenset(stage.seen)

    def belongs(classes):
        arrived = setting == 'overlapped' or seen.issuperset(classes)
        return arrived and not current.isdisjoint(classes)

    hits = [index for index, classes in enumerate(image_classes) if belongs(classes)]
    return np.asarray(hits, np.int64)


def labelled_classes(stage: Stage, setting: str = 'overlapped') -> tuple[int, ...]:
    """The classes whose segments the stage is told about; all others are background to it."""
    return stage.seen if setting == 'sequential' else stage.current
