"""Prepared data sets: TFDS data sets in ArrayRecord, written and read without TensorFlow.

A record holds the original image file, the segment map, and the label and crowd flag of each
segment. `metadata.json` holds the categories, the classes, segments and size of each image, and a
checksum of the annotations of each split, so that stages and evaluations are planned without
reading records. The files can also be read with TFDS itself.
"""

from __future__ import annotations

import contextlib
import functools
import itertools
import os
import pathlib
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, NamedTuple

import numpy as np
import tensorflow_datasets as tfds
from array_record.python.array_record_module import ArrayRecordWriter

from simcis_jax import types
from simcis_jax.data import decode
from simcis_jax.data.category_list import category_entries, field, parse_categories
from simcis_jax.data.source import Example
from simcis_jax.errors import FileError, InputError, MissingFileError
from simcis_jax.runtime.json_files import read_json

VERSION = '1.0.0'
_IMAGES_PER_FILE = 2048
_MAX_SEGMENTS = np.iinfo(np.uint16).max
_FILES = '{DATASET}-{SPLIT}.{FILEFORMAT}-{SHARD_X_OF_Y}'


class Prepared:
    """One split of a prepared data set as a `Source`.

    Args:
        root: folder DATA_DIR/NAME of the data set, or the folder of one of its versions.
        split: 'train' or 'val'.

    Raises:
        MissingFileError: the folder holds no prepared data set.
        InputError: the data set is damaged, or has no such split.
    """

    def __init__(self, root: str | os.PathLike, split: str):
        self._folder = _version_folder(pathlib.Path(root))
        metadata = self._folder / 'metadata.json'
        content = read_json(metadata, dict)
        entries = field(content, 'categories', list, f'{metadata}')
        self.categories = parse_categories(entries, f'{metadata}')
        content = {'checksums': {}, 'segments': {}} | content  # Older versions wrote neither.
        classes, sizes, checksums, segments = (
            field(content, name, dict, f'{metadata}')
            for name in ('classes', 'sizes', 'checksums', 'segments')
        )
        if split not in classes:
            raise InputError(f'{self._folder} has the splits {sorted(classes)}, not {split!r}.')
        self.checksum = checksums.get(split)
        self._segments = segments.get(split)
        self._classes = [frozenset(labels) for labels in classes[split]]
        self._sizes = [(height, width) for height, width in sizes[split]]
        # TFDS would decode images differently from `data.decode`.
        decoders = {'image': tfds.decode.SkipDecoding()}
        try:
            builder = tfds.builder_from_directory(self._folder)
            self._records = builder.as_data_source(split, decoders=decoders)
        except Exception as error:  # TFDS raises many types of exceptions.
            raise InputError(
                f'{self._folder} is damaged ({" ".join(str(error).split())}); prepare the data set '
                'again.'
            ) from error
        self.name = f'{builder.name}_{split}'
        self._split = split
        if len(self._records) != len(self._classes):
            raise InputError(
                f'{self._folder} has {len(self._records)} records of {split}, but its metadata '
                f'lists {len(self._classes)}; prepare the data set again.'
            )

    def __len__(self) -> int:
        return len(self._classes)

    def __getitem__(self, index: int) -> Example:
        record = self._record(index)
        image_id = record['image_id'].decode()
        return Example(
            image=decode.decode_image(record['image'], f'{self._folder}: {image_id}'),
            segment_map=record['segment_map'].astype(np.int32),
            labels=record['labels'],
            crowd=record['crowd'],
            image_id=image_id,
        )

    def classes_of(self, index: int) -> frozenset[int]:
        """Classes with at least one non-crowd segment in an image, from the metadata."""
        return self._classes[index]

    def segments_of(self, index: int) -> list[int]:
        """The class of every non-crowd segment in an image, from the metadata.

        Raises:
            InputError: the data set was prepared before the metadata listed segments.
        """
        if self._segments is None:
            raise InputError(
                f'{self._folder} was prepared by an older version and does not list the segments '
                'of its images; remove it and prepare the data set again.'
            )
        return self._segments[index]

    def size_of(self, index: int) -> tuple[int, int]:
        """Height and width of an image in pixels, from the metadata."""
        return self._sizes[index]

    def check_files(self, index: int) -> None:
        """Does nothing: all files were checked when the data set was prepared."""

    def image_bytes(self, index: int) -> int:
        """Size of the image file in bytes."""
        return len(self._record(index)['image'])

    def _record(self, index: int) -> Mapping[str, Any]:
        if not 0 <= index < len(self):
            raise IndexError(f'{self.name} has images 0 to {len(self) - 1}, not {index}.')
        try:
            return self._records[index]
        except RuntimeError as error:
            raise FileError(
                f'{self._folder}: image {index} of {self._split} cannot be read '
                f'({" ".join(str(error).split())}); prepare the data set again.'
            ) from None


class Record(NamedTuple):
    """A serialized example and its metadata."""

    serialized: bytes
    segments: list[int]  # The class of every non-crowd segment, ascending.
    size: tuple[int, int]  # Height and width in pixels.


def to_record(encoded_image: bytes, example: Example) -> Record:
    """Serializes an example.

    Args:
        encoded_image: content of the image file, stored unchanged.
        example: the example; its field `image` is not used.

    Raises:
        InputError: it has more segments than fit into uint16.
    """
    if len(example.labels) > _MAX_SEGMENTS:
        raise InputError(
            f'Image {example.image_id!r} has {len(example.labels)} segments; at most '
            f'{_MAX_SEGMENTS} can be stored.'
        )
    serialized = _features().serialize_example(
        {
            'image': encoded_image,
            'image_id': str(example.image_id),
            'segment_map': example.segment_map.astype(np.uint16),
            'labels': example.labels,
            'crowd': example.crowd,
        }
    )
    segments = np.sort(example.labels[~example.crowd]).tolist()
    return Record(serialized, segments, example.segment_map.shape)


class WrittenSplit(NamedTuple):
    """The metadata of a split that has been written."""

    shard_lengths: list[int]
    num_bytes: int
    segments: list[list[int]]
    sizes: list[tuple[int, int]]


def write_split(
    folder: pathlib.Path, name: str, split: str, records: Iterable[Record]
) -> WrittenSplit:
    """Writes the records of a split, in order, to one or more ArrayRecord files.

    The builders of TFDS would need a gigabyte of memory, and TensorFlow for large data sets.

    Args:
        folder: folder of the version.
        name: name of the data set.
        split: name of the split.
        records: the records.

    Raises:
        FileError: a file cannot be written.
    """
    parts, lengths, num_bytes, segments, sizes = [], [], 0, [], []
    numbered = enumerate(records)
    for number, shard in itertools.groupby(numbered, lambda pair: pair[0] // _IMAGES_PER_FILE):
        parts.append(folder / f'{split}.part-{number}')
        lengths.append(0)
        with _writing(parts[-1]) as writer:
            for _, record in shard:
                writer.write(record.serialized)
                lengths[-1] += 1
                num_bytes += len(record.serialized)
                segments.append(record.segments)
                sizes.append(record.size)
    for number, part in enumerate(parts):
        part.rename(folder / f'{name}-{split}.array_record-{number:05}-of-{len(parts):05}')
    return WrittenSplit(lengths, num_bytes, segments, sizes)


@contextlib.contextmanager
def _writing(path: pathlib.Path) -> Iterator[ArrayRecordWriter]:
    try:
        # Random access is fast only with one record per group.
        writer = ArrayRecordWriter(f'{path}', 'group_size:1')
        yield writer
        writer.close()
    except RuntimeError as error:
        reason = ' '.join(str(error).split())
        raise FileError(f'{path} cannot be written ({reason}); is the disk full?') from None


def write_metadata(
    folder: pathlib.Path,
    categories: types.Categories,
    splits: Mapping[str, WrittenSplit],
    checksums: Mapping[str, str],
    *,
    description: str,
) -> None:
    """Writes the metadata that TFDS and `Prepared` need to read the files in `folder`.

    Args:
        folder: folder of the version, whose name is the version.
        categories: categories of all splits.
        splits: split -> its metadata from `write_split`.
        checksums: split -> checksum of its annotations.
        description: description of the data set.
    """
    metadata = {
        'categories': category_entries(categories),
        'classes': {
            split: [sorted(set(labels)) for labels in written.segments]
            for split, written in splits.items()
        },
        'segments': {split: written.segments for split, written in splits.items()},
        'sizes': {split: written.sizes for split, written in splits.items()},
        'checksums': dict(checksums),
    }
    tfds.folder_dataset.write_metadata(
        data_dir=folder,
        features=_features(),
        split_infos=[
            tfds.core.SplitInfo(
                name=split, shard_lengths=written.shard_lengths, num_bytes=written.num_bytes
            )
            for split, written in splits.items()
        ],
        filename_template=_FILES,
        check_data=False,  # The check needs TensorFlow.
        description=description,
        disable_shuffling=True,
        metadata=tfds.core.MetadataDict(metadata),
    )


@functools.cache
def _features() -> tfds.features.FeaturesDict:
    return tfds.features.FeaturesDict(
        {
            'image': tfds.features.Image(shape=(None, None, 3)),
            'image_id': tfds.features.Text(),
            # 0 = void, k = segment k, whose label and crowd flag are at k - 1.
            'segment_map': tfds.features.Tensor(
                shape=(None, None), dtype=np.uint16, encoding='zlib'
            ),
            'labels': tfds.features.Tensor(shape=(None,), dtype=np.int32),
            'crowd': tfds.features.Tensor(shape=(None,), dtype=np.bool_),
        }
    )


def _version_folder(root: pathlib.Path) -> pathlib.Path:
    """The folder of the newest version in `root`, or `root` if it is the folder of a version."""
    if (root / 'dataset_info.json').is_file():
        return root
    versions = {}
    for path in root.glob('*/dataset_info.json'):
        if tfds.core.Version.is_valid(path.parent.name):
            versions[tfds.core.Version(path.parent.name)] = path.parent
    if not versions:
        raise MissingFileError(
            f'{root} holds no prepared data set; give the folder DATA_DIR/NAME that '
            'python -m simcis_jax.prepare made.'
        )
    return versions[max(versions)]
