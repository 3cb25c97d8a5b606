"""Augmentation of an example, and its conversion to training targets of fixed shape.

All functions are pure and use NumPy and OpenCV; random ones take a generator.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Collection

import cv2
import numpy as np

from simcis_jax import types
from simcis_jax.data.run_lengths import row_runs
from simcis_jax.data.source import Example
from simcis_jax.errors import InputError

PADDING_GREY = 128  # Value of padded pixels in the published code; near 0 once normalised.


def augment(
    example: Example,
    rng: np.random.Generator,
    *,
    size: int,
    scale_range: tuple[float, float] = (0.5, 2.0),
    scale_steps: int = 16,
    max_scale: float = 4.0,
    mirror: bool = True,
    color: bool = True,
) -> Example:
    """The published training augmentation: scale jitter, crop, colour, flip, pad to size x size."""
    example = scale_jitter_and_crop(
        example, rng, size=size, scale_range=scale_range, scale_steps=scale_steps,
        max_scale=max_scale,
    )  # fmt: skip
    if color:
        example = ssd_color(example, rng)
    if mirror and rng.random() < 0.5:
        example = flip(example)
    # Padding comes last, so that it is always at the bottom and right and exactly grey.
    return pad(example, size=size)


def scale_jitter_and_crop(
    example: Example,
    rng: np.random.Generator,
    *,
    size: int,
    scale_range: tuple[float, float] = (0.5, 2.0),
    scale_steps: int = 16,
    max_scale: float = 4.0,
) -> Example:
    """Resizes the shorter side to a random multiple of `size`, then crops at most size x size.

    Args:
        example: the example to crop.
        rng: random generator.
        size: side of the crop in pixels.
        scale_range: smallest and largest multiple; (1, 1) leaves the image at its own size.
        scale_steps: number of evenly spaced multiples to choose from, including both ends.
        max_scale: the longer side is at most this multiple of `size`.

    Raises:
        InputError: `scale_range` is (1, 1) and the image is smaller than the crop.
    """
    height, width = example.image.shape[:2]
    if tuple(scale_range) == (1.0, 1.0):
        if min(height, width) < size:
            raise InputError(
                f'Image {example.image_id!r} is {width}x{height} pixels, smaller than the '
                f'{size}x{size} crop; give a scale_range other than (1, 1) or a smaller crop.'
            )
        new_height, new_width = height, width
    else:
        multiple = rng.choice(np.linspace(*scale_range, scale_steps))
        # Without rounding, 0.7 * 640 would become 447 instead of 448.
        short_side = int(round(multiple * size, 6))
        new_height, new_width = resized_shape(
            height, width, short_side=short_side, max_side=int(max_scale * size)
        )
    crop_height, crop_width = min(size, new_height), min(size, new_width)
    top = rng.integers(new_height - crop_height + 1)
    left = rng.integers(new_width - crop_width + 1)
    corner, crop = (top, left), (crop_height, crop_width)
    return resized_crop(example, (new_height, new_width), corner, crop)


def resized_crop(
    example: Example, shape: tuple[int, int], corner: tuple[int, int], crop: tuple[int, int]
) -> Example:
    """Resizes an example and crops a window out of it.

    Args:
        example: the example, of any size.
        shape: (height, width) after resizing.
        corner: (top, left) of the window in the resized image.
        crop: (height, width) of the window, which must lie inside the resized image.

    Returns:
        the window, with a segment map of the smallest type that fits.
    """
    height, width = example.image.shape[:2]
    (top, left), (crop_height, crop_width) = corner, crop
    image = resize_image(example.image, *shape)
    # The segment map is resized by nearest neighbour, and only inside the crop.
    rows = _nearest(np.arange(top, top + crop_height), height, shape[0])
    columns = _nearest(np.arange(left, left + crop_width), width, shape[1])
    visible = example.segment_map[rows[0] : rows[-1] + 1].astype(_map_type(len(example.labels)))
    return dataclasses.replace(
        example,
        # A view would keep the whole resized image in memory.
        image=image[top : top + crop_height, left : left + crop_width].copy(),
        segment_map=visible.take(columns, axis=1)[rows - rows[0]],  # [crop_height, crop_width]
    )


def resized_shape(height: int, width: int, *, short_side: int, max_side: int) -> tuple[int, int]:
    """The (height, width) with this shorter side, or less if the longer would exceed `max_side`."""
    scale = min(short_side / min(height, width), max_side / max(height, width))
    return max(1, int(height * scale + 0.5)), max(1, int(width * scale + 0.5))


def resize_image(image: np.ndarray, height: int, width: int) -> np.ndarray:
    """Resizes [H, W, 3] uint8: bilinear to enlarge, by area averages to shrink (no aliasing)."""
    if image.shape[:2] == (height, width):
        return image
    shrinks = height < image.shape[0]
    mode = cv2.INTER_AREA if shrinks else cv2.INTER_LINEAR
    return cv2.resize(image, (width, height), interpolation=mode)


def flip(example: Example) -> Example:
    """Mirrors an example left to right."""
    return dataclasses.replace(
        example, image=cv2.flip(example.image, 1), segment_map=cv2.flip(example.segment_map, 1)
    )


def pad(example: Example, *, size: int) -> Example:
    """Pads bottom and right to [size, size]: the image with grey, the map with void."""
    height, width = example.segment_map.shape
    if height == width == size:
        return example
    margin = 0, size - height, 0, size - width, cv2.BORDER_CONSTANT
    return dataclasses.replace(
        example,
        image=cv2.copyMakeBorder(example.image, *margin, value=(PADDING_GREY,) * 3),
        segment_map=cv2.copyMakeBorder(example.segment_map, *margin, value=0),
    )


def ssd_color(example: Example, rng: np.random.Generator) -> Example:
    """Photometric distortion of SSD (Liu et al. 2016); each part has a probability of one half.

    Brightness +-32, contrast x 0.5..1.5, saturation x 0.5..1.5, hue +-18 of 180. Contrast comes
    before or after saturation and hue, at random.
    """
    levels = np.arange(256, dtype=np.float32)
    image = example.image.copy()  # Changed in place: new arrays cost page faults.
    brightness, contrast, saturation, hue, contrast_first = rng.random(5) < 0.5
    shift, gain = rng.uniform(-32, 32), rng.uniform(0.5, 1.5)
    saturation_gain, turn = rng.uniform(0.5, 1.5), int(rng.integers(-18, 18))
    if brightness:
        cv2.LUT(image, _byte(levels + shift), dst=image)
    if contrast and contrast_first:
        cv2.LUT(image, _byte(levels * gain), dst=image)
    if saturation or hue:
        hsv = cv2.cvtColor(image, cv2.COLOR_RGB2HSV)
        tables = {0: (levels + turn) % 180} if hue else {}
        tables |= {1: levels * saturation_gain} if saturation else {}
        for channel, table in tables.items():
            changed = cv2.LUT(cv2.extractChannel(hsv, channel), _byte(table))
            cv2.insertChannel(changed, hsv, channel)
        cv2.cvtColor(hsv, cv2.COLOR_HSV2RGB, dst=image)
    if contrast and not contrast_first:
        cv2.LUT(image, _byte(levels * gain), dst=image)
    return dataclasses.replace(example, image=image)


def to_targets(
    example: Example,
    keep_classes: Collection[int],
    *,
    max_segments: int,
    keep_empty: bool = False,
) -> types.Targets:
    """Converts an example to training targets of fixed shape, without a batch axis.

    Segments of other classes and crowd segments become void. If there are more than `max_segments`
    segments, the largest are kept in their original order, and `dropped` counts the others.

    Args:
        example: an example [H, W] after augmentation.
        keep_classes: the classes that are targets.
        max_segments: T, the number of slots.
        keep_empty: whether segments that lie outside the crop stay targets, with an empty mask and
            a box of zeros, as in the published code; otherwise they are dropped.

    Returns:
        targets with NumPy leaves: segment_map [H, W] (uint8 if T <= 255, else int32),
        labels [T] int32, boxes [T, 4] float32 with exclusive right and bottom edges, dropped int32.
    """
    height, width = example.segment_map.shape
    starts, lengths = row_runs(example.segment_map)
    segments = example.segment_map.ravel()[starts]
    areas = np.bincount(segments, lengths, minlength=len(example.labels) + 1)[1:]
    wanted = np.isin(example.labels, list(keep_classes)) & ~example.crowd
    kept = candidates = np.flatnonzero(wanted if keep_empty else wanted & (areas > 0))
    if len(candidates) > max_segments:
        kept = np.sort(candidates[np.argsort(-areas[candidates], kind='stable')[:max_segments]])

    slot_of = np.zeros(len(example.labels) + 1, _map_type(max_segments))
    slot_of[kept + 1] = np.arange(1, len(kept) + 1)
    labels = np.full(max_segments, -1, np.int32)
    labels[: len(kept)] = example.labels[kept]
    boxes = np.zeros((max_segments, 4), np.float32)
    boxes[: len(kept)] = _boxes(segments, starts, lengths, width, len(example.labels))[kept]
    boxes /= (width, height, width, height)
    return types.Targets(
        segment_map=np.repeat(slot_of[segments], lengths).reshape(height, width),
        labels=labels,
        boxes=boxes,
        dropped=np.int32(len(candidates) - len(kept)),
    )


def _boxes(
    segments: np.ndarray, starts: np.ndarray, lengths: np.ndarray, width: int, count: int
) -> np.ndarray:
    """Boxes [count, 4] (cx, cy, w, h) in pixels of segments 1 .. count, from row runs [n]."""
    rows, columns = np.divmod(starts, width)
    first = np.full((2, count + 1), np.iinfo(np.int64).max)  # Column and row.
    last = np.zeros((2, count + 1), np.int64)  # Exclusive.
    for axis, (begins, ends) in enumerate([(columns, columns + lengths), (rows, rows + 1)]):
        np.minimum.at(first[axis], segments, begins)
        np.maximum.at(last[axis], segments, ends)
    first = np.minimum(first, last)  # Segments without pixels get a box of zeros.
    return np.concatenate([(first + last) / 2, last - first])[:, 1:].T


def _nearest(indices: np.ndarray, num_in: int, num_out: int) -> np.ndarray:
    """The index of the input pixel that contains the centre of each output pixel."""
    return np.minimum(((indices + 0.5) * (num_in / num_out)).astype(np.int64), num_in - 1)


def _map_type(count: int) -> type[np.integer]:
    """The smallest type for a map of `count` segments; OpenCV supports few others."""
    return np.uint8 if count <= 255 else np.int32


def _byte(values: np.ndarray) -> np.ndarray:
    return np.clip(values, 0, 255).astype(np.uint8)
