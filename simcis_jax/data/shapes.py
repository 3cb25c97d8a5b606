"""Shapes: a built-in panoptic data set of synthetic landscapes, drawn on demand from a seed.

It has four stuff and eight thing classes, ordered for the protocol 8-2: 8 base classes, then 2,
then 2. Classes differ in shape and texture, and less reliably in colour; things overlap.
"""

from __future__ import annotations

from typing import Literal

import numpy as np

from simcis_jax import types
from simcis_jax.data import shapes_painting, shapes_scene
from simcis_jax.data.shapes_scene import CLASSES
from simcis_jax.data.source import Example
from simcis_jax.data.storage_size import png_bytes
from simcis_jax.errors import InputError

_MIN_VISIBLE_SHARE = 0.3
_MIN_VISIBLE_AREA = 24 / 64**2  # As a fraction of the image.
# Drawing keeps a CPU core busy during training, so data sets of up to this many pixels (7 bytes
# each) are kept in memory once drawn.
_MAX_KEPT_PIXELS = 2**25


class Shapes:
    """The Shapes data set as a `Source`; an image depends only on seed, split, index and size.

    Args:
        split: 'train' or 'val', which have no images in common.
        size: side of the square images in pixels.
        num_images: number of images; by default 4000 for 'train' and 200 for 'val'.
        seed: each seed gives different images of the same classes.

    Raises:
        InputError: `split` is unknown.
    """

    def __init__(
        self,
        split: Literal['train', 'val'] = 'train',
        *,
        size: int = 64,
        num_images: int | None = None,
        seed: int = 0,
    ):
        if split not in ('train', 'val'):
            raise InputError(f"Shapes has no split {split!r}; use 'train' or 'val'.")
        if num_images is None:
            num_images = {'train': 4000, 'val': 200}[split]
        self.name = f'shapes_{split}'
        self.categories = types.Categories(
            names=tuple(cls.name for cls in CLASSES),
            is_thing=tuple(cls.is_thing for cls in CLASSES),
            colors=tuple(
                tuple(int(c) for c in shapes_painting.rgb(cls.hue, cls.saturation, cls.value))
                for cls in CLASSES
            ),
        )
        self._split = split
        self._size = size
        self._num_images = num_images
        self._seed = seed
        self._segments = {}  # Index -> class of every segment, filled on demand.
        self._examples = {}  # Index -> Example, filled on demand if the data set is small.

    def __len__(self) -> int:
        return self._num_images

    def __getitem__(self, index: int) -> Example:
        if index not in self._examples:
            example = self._draw(index)
            if len(self) * self._size**2 > _MAX_KEPT_PIXELS:
                return example
            for array in (example.image, example.segment_map, example.labels):
                array.setflags(write=False)  # The arrays are shared by all callers.
            self._examples[index] = example
        return self._examples[index]

    def _draw(self, index: int) -> Example:
        rng, regions, segment_map = self._layout(index)
        image = shapes_painting.paint(rng, regions, self._size)
        present = np.unique(segment_map)
        present = present[present > 0]
        return Example(
            image=image,
            segment_map=np.searchsorted(present, segment_map, side='right').astype(np.int32),
            labels=np.asarray([regions[k - 1].label for k in present], np.int32),
            crowd=np.zeros(len(present), bool),
            image_id=f'{self._split}_{index:06d}',
        )

    def classes_of(self, index: int) -> frozenset[int]:
        """Classes with at least one segment in an image."""
        return frozenset(self.segments_of(index))

    def segments_of(self, index: int) -> list[int]:
        """The class of every segment in an image; only its outlines are drawn."""
        if index not in self._segments:
            _, regions, segment_map = self._layout(index)
            present = np.bincount(segment_map.ravel(), minlength=len(regions) + 1)[1:] > 0
            self._segments[index] = [
                region.label for region, shown in zip(regions, present, strict=True) if shown
            ]
        return self._segments[index]

    def size_of(self, index: int) -> tuple[int, int]:
        """Height and width, the same for all images."""
        del index
        return self._size, self._size

    def check_files(self, index: int) -> None:
        """Does nothing: there are no files."""

    def image_bytes(self, index: int) -> int:
        """Size of an image in bytes as a PNG."""
        return png_bytes(self[index].image)

    def _layout(
        self, index: int
    ) -> tuple[np.random.Generator, list[shapes_scene.Region], np.ndarray]:
        """The generator after drawing the layout, the regions from back to front, and their map."""
        if not 0 <= index < len(self):
            raise IndexError(f'{self.name} has images 0 to {len(self) - 1}, not {index}.')
        rng = np.random.default_rng([self._seed, self._split == 'val', index])
        stuff = shapes_scene.draw_stuff(rng, self._size)
        things = shapes_scene.draw_things(rng, self._size)
        min_area = _MIN_VISIBLE_AREA * self._size**2
        # Front to back: when a thing is reached, the things that hide it are already known.
        hidden = np.zeros((self._size, self._size), bool)
        kept = []
        for thing in reversed(things):
            mask = thing.alpha >= 0.5
            visible = np.count_nonzero(mask & ~hidden)
            if visible >= max(min_area, _MIN_VISIBLE_SHARE * np.count_nonzero(mask)):
                kept.append(thing)
                hidden |= mask
        regions = stuff + kept[::-1]
        segment_map = np.zeros((self._size, self._size), np.int64)
        for k, region in enumerate(regions, start=1):
            segment_map[region.alpha >= 0.5] = k
        areas = np.bincount(segment_map.ravel(), minlength=len(regions) + 1)
        segment_map[(areas < min_area)[segment_map]] = 0
        return rng, regions, segment_map
