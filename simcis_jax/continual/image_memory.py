"""Image replay: some images of past stages are kept, with the labels they had there.

A memory never looks back: after each stage it is chosen anew from what it held and what the stage
showed. An image that was given up returns only if a later stage shows it, with the labels of that
stage alone. So the memories of all stages follow from the stages and one ranking of the images.
"""

from __future__ import annotations

import collections
import math
import types
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence

from simcis_jax.continual.protocol import labelled_classes, stage_images
from simcis_jax.continual.stages import Stage
from simcis_jax.errors import InputError

# Images by their index, each with the classes whose segments are labelled.
Labelled = Mapping[int, frozenset[int]]
NOTHING: Labelled = types.MappingProxyType({})


def union(*images: Labelled) -> dict[int, frozenset[int]]:
    """All of these images, in order; what is in several has the labels of each."""
    merged = {}
    for labelled in images:
        for index, classes in labelled.items():
            merged[index] = merged[index] | classes if index in merged else classes
    return merged


def class_balanced(candidates: Labelled, ranks: Sequence[int]) -> Iterator[int]:
    """The candidates in the order to keep them: always one of the class that has fewest so far.

    Of classes with equally many, the one with fewest candidates is first: it has least choice.

    Args:
        candidates: images and the classes labelled in each.
        ranks: of every image of the data set; of a class, the image of lowest rank comes first.
    """
    waiting = collections.defaultdict(list)  # Class -> its images, the first one last.
    for index in sorted(candidates, key=lambda index: ranks[index], reverse=True):
        for label in candidates[index]:
            waiting[label].append(index)
    available = {label: len(images) for label, images in waiting.items()}
    kept, given = collections.Counter(), set()
    while waiting:
        label = min(waiting, key=lambda label: (kept[label], available[label], label))
        index = waiting[label].pop()
        if not waiting[label]:
            del waiting[label]
        if index not in given:
            given.add(index)
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
) -> list[dict[int, frozenset[int]]]:
    """The memory that each stage replays; that of the first stage is empty.

    Args:
        image_classes: classes of every image of the data set.
        stages: all stages.
        setting: which images a stage shows, see `protocol.stage_images`.
        ranks: of every image: which to keep of those that serve a class equally well.
        num_images: most images of a memory; 0 = any number.
        num_bytes: most bytes of a memory; 0 = any number.
        bytes_of: bytes of an image by its index and labelled classes; needed where bytes count.

    Raises:
        InputError: a memory is too small for one image.
    """
    memories = [{}]
    for stage in stages[:-1]:
        told = frozenset(labelled_classes(stage, setting))
        shown = stage_images(image_classes, stage, setting).tolist()
        candidates = union(memories[-1], {i: told.intersection(image_classes[i]) for i in shown})
        memory, used = {}, 0
        for index in class_balanced(candidates, ranks):
            if num_bytes:
                used += bytes_of(index, candidates[index])
            # The first that has no room is the end: to pass over it would favour small images.
            if len(memory) == (num_images or math.inf) or used > (num_bytes or math.inf):
                break
            memory[index] = candidates[index]
        if candidates and not memory:
            raise InputError(
                f'protocol.replay_megabytes={num_bytes / 1e6:g} has no room for the first image '
                f'of stage {stage.number}, which takes {used / 1e6:.3g}; give more, or 0.'
            )
        memories.append(memory)
    return memories
