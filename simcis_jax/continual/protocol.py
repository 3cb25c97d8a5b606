"""Which images a stage trains on, and which of their classes are labelled."""

from __future__ import annotations

from collections.abc import Collection, Sequence

import numpy as np

from simcis_jax.continual.stages import Stage

# 'overlapped', as in the paper: an image is in every stage that introduces one of its classes.
# 'disjoint', 'sequential': only in the last of these; 'sequential' also labels past classes.
SETTINGS = ('overlapped', 'disjoint', 'sequential')


def stage_images(
    image_classes: Sequence[Collection[int]], stage: Stage, setting: str = 'overlapped'
) -> np.ndarray:
    """Indices [n] of the images that a stage trains on, in order.

    'disjoint' and 'sequential' keep the images whose classes have all been introduced, at least one
    of them in this stage, so that every image is in one stage only (Michieli and Zanuttigh, ICCV
    workshops 2019).

    Args:
        image_classes: classes of every image.
        stage: the stage.
        setting: one of SETTINGS.
    """
    current, seen = frozenset(stage.current), frozenset(stage.seen)

    def belongs(classes):
        all_seen = setting == 'overlapped' or seen.issuperset(classes)
        return all_seen and not current.isdisjoint(classes)

    hits = [index for index, classes in enumerate(image_classes) if belongs(classes)]
    return np.asarray(hits, np.int64)


def labelled_classes(stage: Stage, setting: str = 'overlapped') -> tuple[int, ...]:
    """The classes whose segments are labelled in a stage; all others are background."""
    return stage.seen if setting == 'sequential' else stage.current
