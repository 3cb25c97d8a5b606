"""Image replay: a memory keeps some images of past stages, with the labels they had there.

After each stage the memory is chosen anew from the images it held and the images of the stage. A
discarded image returns only if a later stage contains it, and then with the labels of that stage
only. The memories of all stages are therefore determined by the stages and a ranking of the images.
"""

from __future__ import annotations

import collections
import dataclasses
import math
import types
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence

import numpy as np

from simcis_jax.continual.protocol import labelled_classes, stage_images
from simcis_jax.continual.stages import Stage
from simcis_jax.errors import InputError

# Image index -> the classes whose segments are labelled in that image.
Labelled = Mapping[int, frozenset[int]]
NOTHING: Labelled = types.MappingProxyType({})


def union(*images: Labelled) -> dict[int, frozenset[int]]:
    """Merges sets of images, in order; an image in several of them has the labels of all."""
    merged = {}
    for labelled in images:
        for index, classes in labelled.items():
            merged[index] = merged[index] | classes if index in merged else classes
    return merged


@dataclasses.dataclass(frozen=True)
class ReplayPool:
    """The images from which the memory of a stage is chosen."""

    stage: Stage  # The stage that has just ended.
    kept: Labelled  # The images that it replayed.
    # The images of each stage so far, with the labels of that stage only.
    shown: Sequence[Labelled]
    ranks: Sequence[int]  # Of all images of the data set, a random permutation.
    num_images: int = 0  # Maximum number of images in the memory; 0 = unlimited.
    # The number of segments [C] of every class in an image, labelled or not.
    counts_of: Callable[[int], np.ndarray] | None = None

    @property
    def new(self) -> Labelled:
        """The images of the stage, with its labels only."""
        return self.shown[-1]

    @property
    def candidates(self) -> dict[int, frozenset[int]]:
        """All of them; an image in both sets has the labels of both."""
        return union(self.kept, self.new)


def class_balanced(candidates: Labelled, ranks: Sequence[int]) -> Iterator[int]:
    """Yields the candidates in the order of preference, keeping classes balanced.

    The next image is always one of the class with the fewest images so far; ties go to the class
    with the fewest candidates, which has the least choice.

    Args:
        candidates: images and the classes labelled in each.
        ranks: of all images of the data set; within a class, lower ranks come first.
    """
    waiting = collections.defaultdict(list)  # Class -> its images, the preferred one last.
    for index in sorted(candidates, key=lambda index: ranks[index], reverse=True):
        for label in candidates[index]:
            waiting[label].append(index)
    available = {label: len(images) for label, images in waiting.items()}
    kept, chosen = collections.Counter(), set()
    while waiting:
        label = min(waiting, key=lambda label: (kept[label], available[label], label))
        index = waiting[label].pop()
        if not waiting[label]:
            del waiting[label]
        if index not in chosen:
            chosen.add(index)
            kept.update(candidates[index])
            yield index


def image_memories(
    image_classes: Sequence[Collection[int]],
    stages: Sequence[Stage],
    setting: str = 'overlapped',
    *,
    ranks: Sequence[int],
    num_images: int = 0,
    num_bytes: float = 0,
    bytes_of: Callable[[int, frozenset[int]], int] | None = None,
    counts_of: Callable[[int], np.ndarray] | None = None,
    order: Callable[[ReplayPool], Iterable[int]] | None = None,
) -> list[dict[int, frozenset[int]]]:
    """The memory that each stage replays; that of the first stage is empty.

    Args:
        image_classes: classes of every image of the data set.
        stages: all stages.
        setting: which images a stage trains on, see `protocol.stage_images`.
        ranks: of all images of the data set, see `class_balanced`.
        num_images: maximum number of images in a memory; 0 = unlimited.
        num_bytes: maximum size of a memory in bytes; 0 = unlimited.
        bytes_of: size in bytes of an image, given its index and labelled classes; required if
            `num_bytes` is not 0.
        counts_of: the number of segments [C] of every class in an image, given its index; only
            `order` reads it.
        order: candidates of a pool, the preferred ones first; None = `class_balanced`.

    Raises:
        InputError: a memory is too small for one image.
    """
    memories, shown = [{}], []
    for stage in stages[:-1]:
        labelled = frozenset(labelled_classes(stage, setting))
        images = stage_images(image_classes, stage, setting).tolist()
        shown.append({i: labelled.intersection(image_classes[i]) for i in images})
        pool = ReplayPool(stage, memories[-1], tuple(shown), ranks, num_images, counts_of)
        candidates = pool.candidates
        memory, used = {}, 0
        for index in order(pool) if order else class_balanced(candidates, ranks):
            if num_bytes:
                used += bytes_of(index, candidates[index])
            # Stop at the first image that does not fit: skipping it would favour small images.
            if len(memory) == (num_images or math.inf) or used > (num_bytes or math.inf):
                break
            memory[index] = candidates[index]
        if candidates and not memory:
            raise InputError(
                f'protocol.replay_megabytes={num_bytes / 1e6:g} has no room for the first image '
                f'of stage {stage.number}, which takes {used / 1e6:.3g} MB; raise it, or set it to '
                '0 for no limit.'
            )
        memories.append(memory)
    return memories
