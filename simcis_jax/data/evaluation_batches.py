"""Every image once, at a few shapes: which images share a batch, and the batches themselves.

A shape costs a compilation, so images are sorted by shape before any of them is read. The network
sees an image resized to a fixed shorter side and padded to a multiple of 32, which depends on its
proportions alone; its results are made on a canvas that is a little larger than the image as
stored, of which there are two sizes an octave and side.
"""

from __future__ import annotations

import collections
import dataclasses
import itertools
from collections.abc import Iterator, Sequence

import numpy as np

from simcis_jax.data import augment, decode
from simcis_jax.data.source import Example, Source
from simcis_jax.errors import InputError
from simcis_jax.runtime.threads import map_ahead

SMALLEST_CANVAS = 64  # Pixels of a side.


@dataclasses.dataclass(frozen=True)
class PlannedBatch:
    """Images that are predicted together."""

    indices: tuple[int, ...]  # Of the images in their source, [n] with n <= B.
    padded: tuple[int, int]  # Height and width of the network's input.
    canvas: tuple[int, int]  # Height and width of the results, which holds every image.
    sizes: tuple[tuple[int, int], ...]  # Height and width of each image as resized.
    original_sizes: tuple[tuple[int, int], ...]  # The same as stored.


@dataclasses.dataclass(frozen=True)
class EvaluationBatch:
    """Images of one padded shape; rows past the last image are zero."""

    image: np.ndarray  # [B, Hp, Wp, 3] uint8, RGB, padded bottom and right with 0.
    size: np.ndarray  # [B, 2] int32, valid rows and columns of `image`; 1, 1 past the last image.
    original_size: np.ndarray  # [B, 2] int32, rows and columns of the ground truth, likewise.
    canvas: tuple[int, int]  # At least as large as every original.
    indices: tuple[int, ...]  # [n] of the images in their source.
    examples: list[Example]  # [n] ground truth, at original size.


def plan_batches(
    sizes: Sequence[tuple[int, int]],
    indices: Sequence[int] | np.ndarray,
    *,
    batch_size: int,
    short_side: int,
    max_side: int,
    padding: int = 32,
) -> list[PlannedBatch]:
    """Sorts images into batches of one padded shape each, the largest shape first.

    Args:
        sizes: height and width of every image as stored.
        indices: of the same images in their source.
        batch_size: B, most images of a batch.
        short_side: the shorter side of an image after resizing, in pixels.
        max_side: limit of the longer side, which wins.
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
        # Images of one canvas stay together; only where one group meets the next they mix.
        members.sort(key=lambda member: member[:2])
        for start in range(0, len(members), batch_size):
            canvases, *columns = zip(*members[start : start + batch_size], strict=True)
            canvas = tuple(map(max, zip(*canvases, strict=True)))
            plan.append(PlannedBatch(columns[0], padded, canvas, *columns[1:]))
    return plan


def describe(plan: Sequence[PlannedBatch]) -> str:
    """How many images and shapes a plan has, such as '101 images, 5 network shapes, ...'."""
    counts = {
        'image': sum(len(batch.indices) for batch in plan),
        'network shape': len({batch.padded for batch in plan}),
        'output shape': len({batch.canvas for batch in plan}),
    }
    return ', '.join(f'{count} {name}{"s" * (count != 1)}' for name, count in counts.items())


def load_batches(
    source: Source, plan: Sequence[PlannedBatch], *, batch_size: int, num_threads: int = 4
) -> Iterator[EvaluationBatch]:
    """The planned batches in order; a few images are read ahead in threads.

    Args:
        source: the data set.
        plan: of `plan_batches`.
        batch_size: B, rows of every batch.
        num_threads: threads that read ahead.

    Raises:
        InputError: an image has another size than its source said.
    """

    def load(index: int, size: tuple[int, int], original: tuple[int, int]):
        example = source[index]
        if example.image.shape[:2] != original:
            raise InputError(
                f'Image {example.image_id!r} of {source.name!r} is '
                f'{decode.size_text(example.image.shape)} pixels and listed as '
                f'{decode.size_text(original)} '
                '(width x height); correct the list.'
            )
        return example, augment.resize_image(example.image, *size)

    items = (
        item
        for batch in plan
        for item in zip(batch.indices, batch.sizes, batch.original_sizes, strict=True)
    )
    loaded = map_ahead(lambda item: load(*item), items, num_threads=num_threads)
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
    """A batch of B rows from n <= B resized images.

    Args:
        images: [h, w, 3] uint8 each, not larger than `padded`.
        original_sizes: height and width of each image's results.
        padded: height and width of the network's input.
        canvas: height and width of the results.
        batch_size: B.
        indices: of the images in their source.
        examples: their ground truth.
    """
    image = np.zeros((batch_size, *padded, 3), np.uint8)
    size, original_size = np.ones((2, batch_size, 2), np.int32)
    for row, (resized, original) in enumerate(zip(images, original_sizes, strict=True)):
        size[row], original_size[row] = resized.shape[:2], original
        image[row, : size[row, 0], : size[row, 1]] = resized
    return EvaluationBatch(image, size, original_size, canvas, tuple(indices), list(examples))


def canvas_side(side: int) -> int:
    """The smallest of 64, 96, 128, 192, 256, 384, 512, 768, ... that holds `side`."""
    octave = SMALLEST_CANVAS
    while octave < side:
        octave *= 2
    return octave * 3 // 4 if octave > SMALLEST_CANVAS and side <= octave * 3 // 4 else octave
