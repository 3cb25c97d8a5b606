"""ADE20K with 150 classes, read from the download (ADEChallengeData2016, annotations_instance).

Panoptic ground truth is built as in Mask2Former: stuff comes from the semantic map, and the things
of the instance map are pasted over it. All other pixels are void, including those where the
semantic map shows a thing class but the instance map has no instance. Stuff that is completely
covered by things has no segment.
"""

from __future__ import annotations

import importlib.resources
import os
from typing import Literal

import numpy as np

from simcis_jax import types
from simcis_jax.data import decode
from simcis_jax.data.file_tree import FileTree
from simcis_jax.data.semantic_folder import semantic_example
from simcis_jax.data.source import Example
from simcis_jax.errors import InputError, MissingFileError

_FOLDERS = {'train': 'training', 'val': 'validation'}
_NUM_CLASSES, _NUM_THINGS = 150, 100


def _read_classes() -> tuple[types.Categories, np.ndarray]:
    """The classes, and the label [101] of each category id of the instance maps (-1 for id 0)."""
    table = importlib.resources.files('simcis_jax.data').joinpath('ade20k_classes.tsv')
    rows = [line.split('\t') for line in table.read_text('utf-8').splitlines()[1:]]
    label_of_instance = np.full(_NUM_THINGS + 1, -1, np.int32)
    for label, instance, _, _ in rows:
        if instance != '-':
            label_of_instance[int(instance)] = int(label)
    categories = types.Categories(
        names=tuple(name for *_, name in rows),
        is_thing=tuple(instance != '-' for _, instance, _, _ in rows),
        colors=tuple(tuple(bytes.fromhex(color[1:])) for _, _, color, _ in rows),
    )
    return categories, label_of_instance


CATEGORIES, LABEL_OF_INSTANCE = _read_classes()


class Ade20k:
    """One split of ADE20K, read from the folder or the archives of the download.

    Args:
        source: folder with ADEChallengeData2016 (images, annotations) and annotations_instance,
            unpacked or as .zip and .tar archives; annotations_instance may also be inside
            ADEChallengeData2016.
        split: 'train' or 'val'.
        kind: 'panoptic' or 'semantic'; only 'panoptic' needs annotations_instance.
        allow_partial: skip images that have no annotations instead of raising an error.

    Raises:
        MissingFileError: a folder or file is missing.
        InputError: an archive is damaged.
    """

    categories = CATEGORIES

    def __init__(
        self,
        source: str | os.PathLike,
        split: Literal['train', 'val'],
        kind: Literal['panoptic', 'semantic'],
        *,
        allow_partial: bool = False,
    ):
        tree, folder = FileTree(source), _FOLDERS[split]
        self.name = f'ade20k_{kind}_{split}'
        self._is_panoptic = kind == 'panoptic'
        try:
            self._images = tree.find(f'images/{folder}')
            self._labels = tree.find(f'annotations/{folder}')
            needed = self._is_panoptic
            self._instances = tree.find(f'annotations_instance/{folder}') if needed else None
        except FileNotFoundError as error:
            raise MissingFileError(
                f'{error} ADE20K is read from the release ADEChallengeData2016, plus '
                'annotations_instance for panoptic data, not from the full ADE20K_2021_17_01.'
            ) from None
        stems = {name[:-4] for name in self._images.names if name.endswith('.jpg')}
        for files in filter(None, (self._labels, self._instances)):
            lacking = stems - {name[:-4] for name in files.names if name.endswith('.png')}
            if lacking and not allow_partial:
                raise MissingFileError(
                    f'{files.where}/{min(lacking)}.png does not exist ({len(lacking)} such files '
                    'are missing); complete the download, or skip their images with '
                    '--allow_partial.'
                )
            stems -= lacking
        self._stems = sorted(stems)

    def __len__(self) -> int:
        return len(self._stems)

    def read(self, index: int) -> tuple[bytes, Example]:
        """Returns the encoded image file and the decoded example.

        Raises:
            InputError: a file is damaged or not in the format of ADE20K.
        """
        stem = self._stems[index]
        encoded = self._images.read(f'{stem}.jpg')
        image = decode.decode_image(encoded, f'{self._images.where}/{stem}.jpg')
        where = f'{self._labels.where}/{stem}.png'
        labels = decode.decode_labels(self._labels.read(f'{stem}.png'), where)
        decode.check_same_size(labels.shape, where, image.shape, f'{stem}.jpg')
        if labels.max() > _NUM_CLASSES:
            raise InputError(
                f'{where} has label {labels.max()}; labels of ADE20K are 1 to {_NUM_CLASSES}, or 0 '
                'for void.'
            )
        if not self._is_panoptic:
            return encoded, semantic_example(image, (labels - 1).astype(np.uint8), stem)
        where = f'{self._instances.where}/{stem}.png'
        instances = decode.decode_colors(self._instances.read(f'{stem}.png'), where)
        decode.check_same_size(instances.shape, where, image.shape, f'{stem}.jpg')
        segment_map, segment_labels = panoptic_segments(labels, instances, where)
        crowd = np.zeros(len(segment_labels), bool)
        return encoded, Example(image, segment_map, segment_labels, crowd, stem)

    def annotation_bytes(self, index: int) -> bytes:
        """The file name of an image and the content of its annotation PNGs, for a checksum."""
        stem = self._stems[index]
        files = filter(None, (self._labels, self._instances))
        return b''.join((stem.encode(), *(part.read(f'{stem}.png') for part in files)))

    def __getitem__(self, index: int) -> Example:
        return self.read(index)[1]


def panoptic_segments(
    labels: np.ndarray, instances: np.ndarray, where: object
) -> tuple[np.ndarray, np.ndarray]:
    """Merges semantic and instance maps: stuff by class, then things by instance.

    Args:
        labels: [H, W] integers, classes 1 .. 150; 0 = void.
        instances: [H, W, 3] uint8; red is the category 1 .. 100, green the number of the instance;
            green 0 = no instance.
        where: name of the instance map for error messages.

    Returns:
        segment map [H, W] int32 (0 = void, k = segment k) and the label [n] int32 of each segment.

    Raises:
        InputError: an instance has several categories or an unknown one.
    """
    instance, category = instances[..., 1].astype(np.int32), instances[..., 0].astype(np.int32)
    pairs = np.flatnonzero(np.bincount((instance * 256 + category).ravel()))
    pairs = pairs[pairs >= 256]  # Instance 0 means no instance.
    numbers, categories = pairs // 256, pairs % 256
    is_wrong = (np.diff(numbers, append=0) == 0) | (categories == 0) | (categories > _NUM_THINGS)
    if is_wrong.any():
        wrong = numbers[is_wrong][0]
        raise InputError(
            f'{where}: instance {wrong} (green channel) has the categories '
            f'{categories[numbers == wrong].tolist()} (red channel); it must have exactly one, '
            f'from 1 to {_NUM_THINGS}.'
        )
    is_stuff = np.insert(~np.asarray(CATEGORIES.is_thing), 0, False)  # [151], indexed by label + 1.
    stuff = np.where(is_stuff, np.arange(_NUM_CLASSES + 1), 0)[labels]
    keys = np.where(instance > 0, _NUM_CLASSES + instance, stuff)
    present = np.flatnonzero(np.bincount(keys.ravel()))
    present = present[present > 0]
    label_of_key = np.concatenate([np.arange(-1, _NUM_CLASSES), np.zeros(255, int)])
    label_of_key[_NUM_CLASSES + numbers] = LABEL_OF_INSTANCE[categories]
    slot_of_key = np.zeros(len(label_of_key), np.int32)
    slot_of_key[present] = np.arange(1, len(present) + 1)
    return slot_of_key[keys], label_of_key[present].astype(np.int32)
