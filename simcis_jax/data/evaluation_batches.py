"""Groups evaluation images of different sizes into batches with few distinct shapes.

Every new shape has to be compiled, so images are grouped by shape before any is read. The input of
the network is the image resized to a fixed shorter side and padded to a multiple of 32; its shape
depends only on the aspect ratio. The output is computed on a canvas at least as large as the
original image, whose height and width are rounded up to 64, 96, 128, 192, 256, 384, ... pixels.
"""

from __future__ import annotations

import collections
import contextlib
import dataclasses
import itertools
import math
from collections.abc import Generator, Sequence

import numpy as np

from simcis_jax.data import augment, decode
from simcis_jax.data.source import Example, Source
from simcis_jax.errors import InputError
from simcis_jax.runtime.threads import map_ahead

SMALLEST_CANVAS = 64  # Smallest height and width in pixels.


@dataclasses.dataclass(frozen=True)
class PlannedBatch:
    """n <= B images that are predicted together."""

    indices: tuple[int, ...]  # [n], indices of the images in their source.
    padded: tuple[int, int]  # Height and width of the network's input.
    canvas: tuple[int, int]  # Height and width of the output, at least those of every image.
    sizes: tuple[tuple[int, int], ...]  # [n], height and width of each image after resizing.
    original_sizes: tuple[tuple[int, int], ...]  # [n], height and width of each image as stored.


@dataclasses.dataclass(frozen=True)
class EvaluationBatch:
    """A batch of n <= B images, padded to one shape; rows n to B - 1 are padding."""

    image: np.ndarray  # [B, Hp, Wp, 3] uint8, RGB, padded with 0 at the bottom and right.
    size: np.ndarray  # [B, 2] int32, height and width of each image in `image`; (1, 1) in padding.
    original_size: np.ndarray  # [B, 2] int32, those of the ground truth; (1, 1) in padding.
    canvas: tuple[int, int]  # Height and width of the output.
    indices: tuple[int, ...]  # [n], indices of the images in their source.
    examples: list[Example]  # [n], ground truth at its original size.


def plan_batches(
    sizes: Sequence[tuple[int, int]],
    indices: Sequence[int] | np.ndarray,
    *,
    batch_size: int,
    short_side: int,
    max_side: int,
    padding: int = 32,
) -> list[PlannedBatch]:
    """Groups images into batches with one padded shape each, the largest shape first.

    Args:
        sizes: height and width of every image as stored.
        indices: indices of these images in their source.
        batch_size: B, the largest number of images in a batch.
        short_side: shorter side of an image after resizing, in pixels.
        max_side: limit of the longer side in pixels; where it is exceeded, the image is scaled
            down further.
        padding: heights and widths are padded to multiples of this.
    """
    groups = collections.defaultdict(list)
    for original, index in zip(sizes, indices, strict=True):
        size = augment.resized_shape(*original, short_side=short_side, max_side=max_side)
        padded = tuple(-(-side // padding) * padding for side in size)
        canvas = tuple(map(canvas_side, original))
        groups[padded].append((canvas, int(index), size, tuple(original)))
    plan = []
    for padded, members in sorted(groups.items(), key=lambda item: (-np.prod(item[0]), item[0])):
        # Sorting by canvas keeps the number of batches with mixed canvases small.
        members.sort(key=lambda member: member[:2])
        for start in range(0, len(members), batch_size):
            batch = members[start : start + batch_size]
            canvases, chosen, resized, originals = zip(*batch, strict=True)
            canvas = tuple(map(max, zip(*canvases, strict=True)))
            plan.append(PlannedBatch(chosen, padded, canvas, resized, originals))
    return plan


def share_of(plan: Sequence[PlannedBatch], process: int, num_processes: int) -> list[PlannedBatch]:
    """The batches of one process: neighbours in the plan, so that it compiles few shapes.

    All processes have about the same number of pixels.
    """
    pixels = np.array([math.prod(batch.padded) for batch in plan])
    middle = np.cumsum(pixels) - pixels / 2
    owner = (middle * num_processes / max(1, pixels.sum())).astype(int)
    return [batch for batch, index in zip(plan, owner, strict=True) if index == process]


def describe(plan: Sequence[PlannedBatch]) -> str:
    """Counts images and shapes in words: '101 images, 5 network shapes, 7 output shapes'."""
    counts = {
        'image': sum(len(batch.indices) for batch in plan),
        'network shape': len({batch.padded for batch in plan}),
        'output shape': len({batch.canvas for batch in plan}),
    }
    return ', '.join(f'{count} {name}{"s" * (count != 1)}' for name, count in counts.items())


def load_batches(
    source: Source, plan: Sequence[PlannedBatch], *, batch_size: int, num_threads: int = 4
) -> Generator[EvaluationBatch, None, None]:
    """Loads the planned batches in order; threads read a few images ahead until it is closed.

    Args:
        source: the data set.
        plan: the batches from `plan_batches`.
        batch_size: B, rows of every batch.
        num_threads: number of threads that read ahead.

    Raises:
        InputError: the size of an image differs from the one that its source gave.
    """

    def load(index: int, size: tuple[int, int], original: tuple[int, int]):
        example = source[index]
        if example.image.shape[:2] != original:
            raise InputError(
                f'Image {example.image_id!r} of {source.name!r} is '
                f'{decode.size_text(example.image.shape)} pixels and listed as '
                f'{decode.size_text(original)} (width x height); correct the list.'
            )
        return example, augment.resize_image(example.image, *size)

    items = (
        item
        for batch in plan
        for item in zip(batch.indices, batch.sizes, batch.original_sizes, strict=True)
    )
    with contextlib.closing(
        map_ahead(lambda item: load(*item), items, num_threads=num_threads)
    ) as loaded:
        for planned in plan:
            members = list(itertools.islice(loaded, len(planned.indices)))
            yield pad_batch(
                [resized for _, resized in members],
                planned.original_sizes,
                padded=planned.padded,
                canvas=planned.canvas,
                batch_size=batch_size,
                indices=planned.indices,
                examples=[example for example, _ in members],
            )


def pad_batch(
    images: Sequence[np.ndarray],
    original_sizes: Sequence[tuple[int, int]],
    *,
    padded: tuple[int, int],
    canvas: tuple[int, int],
    batch_size: int,
    indices: Sequence[int] = (),
    examples: Sequence[Example] = (),
) -> EvaluationBatch:
    """Pads n <= B resized images to a batch of B rows.

    Args:
        images: n images [h, w, 3] uint8, not larger than `padded`.
        original_sizes: height and width of each image before resizing.
        padded: height and width of the network's input.
        canvas: height and width of the output.
        batch_size: B.
        indices: indices of the images in their source.
        examples: ground truth of the images.
    """
    image = np.zeros((batch_size, *padded, 3), np.uint8)
    size, original_size = np.ones((2, batch_size, 2), np.int32)
    for row, (resized, original) in enumerate(zip(images, original_sizes, strict=True)):
        size[row], original_size[row] = resized.shape[:2], original
        image[row, : size[row, 0], : size[row, 1]] = resized
    return EvaluationBatch(image, size, original_size, canvas, tuple(indices), list(examples))


def canvas_side(side: int) -> int:
    """Rounds up to the next of 64, 96, 128, 192, 256, 384, 512, 768, ... pixels."""
    octave = SMALLEST_CANVAS
    while octave < side:
        octave *= 2
    return octave * 3 // 4 if octave > SMALLEST_CANVAS and side <= octave * 3 // 4 else octave
