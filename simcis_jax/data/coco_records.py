"""The entries of a COCO panoptic JSON, as arrays."""

from __future__ import annotations

import itertools
import pathlib
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from simcis_jax.data.category_list import field, flag
from simcis_jax.errors import InputError


class Record(NamedTuple):
    """An image and its segments."""

    image_id: str | int
    image_file: str
    size: tuple[int, int]  # height, width
    panoptic_file: str
    segment_ids: np.ndarray  # [n] int64, ascending
    labels: np.ndarray  # [n] int32
    crowd: np.ndarray  # [n] bool


class Records:
    """Records with one array per field, which are small and quick to send to worker processes."""

    def __init__(self, records: Sequence[Record]):
        columns = list(zip(*records, strict=True)) or [()] * len(Record._fields)
        self._ids, self._files, sizes, self._panoptic_files, *segments = columns
        self._sizes = np.asarray(sizes, np.int32)
        self._ends = np.cumsum([0, *map(len, segments[0])])
        kinds = (np.int32, np.int32, bool)
        self._segments = tuple(
            np.concatenate([np.zeros(0, kind), *arrays]).astype(kind)
            for kind, arrays in zip(kinds, segments, strict=True)
        )

    def __len__(self) -> int:
        return len(self._ids)

    def __getitem__(self, index: int) -> Record:
        index = range(len(self))[index]
        here = slice(self._ends[index], self._ends[index + 1])
        segment_ids, labels, crowd = (column[here] for column in self._segments)
        return Record(
            self._ids[index],
            self._files[index],
            tuple(self._sizes[index].tolist()),
            self._panoptic_files[index],
            segment_ids.astype(np.int64),
            labels,
            crowd,
        )

    def classes(self) -> list[frozenset[int]]:
        """The classes with at least one non-crowd segment of every image."""
        _, labels, crowd = self._segments
        ends = np.concatenate([[0], np.cumsum(~crowd)])[self._ends].tolist()
        labels, known = labels[~crowd].tolist(), {}  # Many images have the same classes.
        found = (frozenset(labels[a:b]) for a, b in itertools.pairwise(ends))
        return [known.setdefault(classes, classes) for classes in found]


def read_records(
    content: dict[str, Any], label_of: dict[int, int], path: pathlib.Path
) -> list[Record]:
    """The images that are annotated, in the order of the annotations.

    Args:
        content: the JSON.
        label_of: the label of each category id.
        path: the JSON file, for errors.

    Raises:
        InputError: an entry is not in the format, or contradicts another one.
    """
    images = {}
    for position, entry in enumerate(field(content, 'images', list, f'{path}')):
        where = f'{path}: images[{position}]'
        image_id = field(entry, 'id', (int, str), where)
        if image_id in images:
            raise InputError(
                f'{where}: image id {image_id!r} occurs twice; every image needs its own id.'
            )
        size = tuple(field(entry, side, int, where) for side in ('height', 'width'))
        if not all(0 < side < 2**31 for side in size):
            raise InputError(
                f'{where}: height {size[0]} and width {size[1]} must be at least 1 pixel and below '
                '2^31; correct the JSON.'
            )
        images[image_id] = field(entry, 'file_name', str, where), size
    records, annotated = [], set()
    for position, entry in enumerate(field(content, 'annotations', list, f'{path}')):
        where = f'{path}: annotations[{position}]'
        image_id = field(entry, 'image_id', (int, str), where)
        if image_id not in images:
            raise InputError(
                f'{where}: image_id {image_id!r} is not listed under "images"; list it there.'
            )
        if image_id in annotated:
            raise InputError(f'{where}: image_id {image_id!r} is annotated twice; remove one.')
        annotated.add(image_id)
        segments = field(entry, 'segments_info', list, where)
        ids = [field(segment, 'id', int, where) for segment in segments]
        category_ids = [field(segment, 'category_id', int, where) for segment in segments]
        if unknown := sorted(set(category_ids) - label_of.keys()):
            raise InputError(
                f'{where}: category ids {unknown} are not listed under "categories"; '
                'list them there.'
            )
        if len(set(ids)) < len(ids) or any(not 0 < segment_id < 2**24 for segment_id in ids):
            raise InputError(
                f'{where}: segment ids {sorted(ids)} must be unique and lie in 1 .. 2^24 - 1, the '
                'range of a 24-bit colour; correct the JSON.'
            )
        order = np.argsort(ids)
        labels = [label_of[category_id] for category_id in category_ids]
        crowd = [flag(segment, 'iscrowd', where, default=0) for segment in segments]
        records.append(
            Record(
                image_id,
                *images[image_id],
                field(entry, 'file_name', str, where),
                np.asarray(ids, np.int64)[order],
                np.asarray(labels, np.int32)[order],
                np.asarray(crowd, bool)[order],
            )
        )
    return records
