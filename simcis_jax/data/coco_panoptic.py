"""Data sets in the COCO panoptic format: images, PNGs of segment ids, and one JSON file."""

from __future__ import annotations

import os
import pathlib
from collections.abc import Callable
from typing import Any

import cv2
import numpy as np

from simcis_jax import types
from simcis_jax.data import decode
from simcis_jax.data.category_list import check_validation_categories, field, parse_categories
from simcis_jax.data.coco_records import Records, read_records
from simcis_jax.data.picture_size import check_listed_size
from simcis_jax.data.run_lengths import row_runs
from simcis_jax.data.source import Example
from simcis_jax.errors import InputError, MissingFileError
from simcis_jax.runtime.json_files import read_json


class CocoPanoptic:
    """A COCO panoptic data set as a `Source`.

    Category ids may start at any number and have gaps; the label of a category is its position
    when they are sorted by id. The constructor reads only the JSON file; images and PNGs are read
    when an example is accessed.

    Args:
        images: folder of the images.
        panoptic: folder of the PNGs; the colour R + 256 G + 65536 B of a pixel is its segment id.
        annotations: the JSON file.
        categories: the categories of the training split, which define the labels; the JSON may
            list no others. None if this is the training split.
        image_file: maps an image id to a path below `images`, for data sets whose JSON does not
            name the image files.

    Raises:
        MissingFileError: a file or folder is missing.
        InputError: the JSON is not in the format, or lists categories that the training split
            lacks.
    """

    def __init__(
        self,
        images: str | os.PathLike,
        panoptic: str | os.PathLike,
        annotations: str | os.PathLike,
        *,
        categories: types.Categories | None = None,
        image_file: Callable[[str], str] | None = None,
    ):
        self._images = _existing_folder(images)
        self._panoptic = _existing_folder(panoptic)
        path = pathlib.Path(annotations)
        content = read_json(path, dict)
        listed = parse_categories(field(content, 'categories', list, f'{path}'), f'{path}')
        if categories is not None:
            check_validation_categories(listed, categories, path)
        self.categories = categories or listed
        self.name = path.stem
        label_of = {category_id: label for label, category_id in enumerate(self.categories.ids)}
        records = read_records(content, label_of, path)
        if image_file is not None:
            records = [r._replace(image_file=image_file(str(r.image_id))) for r in records]
        self._records, self._json = Records(records), path
        self._classes = None

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {'_classes': None}  # Workers do not need them.

    def __len__(self) -> int:
        return len(self._records)

    def __getitem__(self, index: int) -> Example:
        return self.read(index)[1]

    def read(self, index: int) -> tuple[bytes, Example]:
        """Returns the encoded image file and the decoded example."""
        record = self._records[index]
        path = self._images / record.image_file
        encoded = decode.read_bytes(path)
        image = decode.decode_image(encoded, path)
        panoptic_path = self._panoptic / record.panoptic_file
        colors = decode.decode_colors(decode.read_bytes(panoptic_path), panoptic_path)
        decode.check_same_size(colors.shape, panoptic_path, image.shape, record.image_file)
        segment_map = _segment_map(_segment_ids(colors), record.segment_ids, panoptic_path)
        return encoded, Example(image, segment_map, record.labels, record.crowd, record.image_id)

    def annotation_bytes(self, index: int) -> bytes:
        """The panoptic PNG of an image and its entry in the JSON, for a checksum."""
        record = self._records[index]
        png = decode.read_bytes(self._panoptic / record.panoptic_file)
        listed = record.segment_ids.tobytes(), record.labels.tobytes(), record.crowd.tobytes()
        return b''.join((record.image_file.encode(), *listed, png))

    def classes_of(self, index: int) -> frozenset[int]:
        """Classes with at least one non-crowd segment in an image, from the JSON."""
        if self._classes is None:
            self._classes = self._records.classes()
        return self._classes[index]

    def segments_of(self, index: int) -> list[int]:
        """The class of every non-crowd segment in an image, from the JSON."""
        record = self._records[index]
        return record.labels[~record.crowd].tolist()

    def size_of(self, index: int) -> tuple[int, int]:
        """Height and width of an image, from the JSON."""
        return self._records[index].size

    def check_files(self, index: int) -> None:
        """Checks that the image and its PNG exist and have the size that the JSON lists."""
        record = self._records[index]
        for path in (self._images / record.image_file, self._panoptic / record.panoptic_file):
            check_listed_size(path, record.size, self._json)

    def image_bytes(self, index: int) -> int:
        """Size of the image file in bytes."""
        return len(decode.read_bytes(self._images / self._records[index].image_file))


def coco_panoptic_split(
    root: str | os.PathLike, split: str, categories: types.Categories | None = None
) -> CocoPanoptic:
    """Opens the layout root/images/SPLIT, root/panoptic_SPLIT, root/panoptic_SPLIT.json."""
    panoptic = pathlib.Path(root) / f'panoptic_{split}'
    images = pathlib.Path(root) / 'images' / split
    return CocoPanoptic(images, panoptic, _json_beside(panoptic), categories=categories)


def coco_split(
    root: str | os.PathLike, split: str, categories: types.Categories | None = None
) -> CocoPanoptic:
    """Opens COCO as it is unpacked: root/train2017, root/annotations/panoptic_train2017[.json]."""
    panoptic = pathlib.Path(root) / 'annotations' / f'panoptic_{split}2017'
    images = pathlib.Path(root) / f'{split}2017'
    return CocoPanoptic(images, panoptic, _json_beside(panoptic), categories=categories)


def cityscapes_split(
    root: str | os.PathLike, split: str, categories: types.Categories | None = None
) -> CocoPanoptic:
    """Opens Cityscapes: root/leftImg8bit/SPLIT/CITY, root/gtFine/cityscapes_panoptic_SPLIT[.json].

    The JSON and its PNGs are those that cityscapesScripts creates; the JSON does not name the image
    files, so their names are derived from the image ids.
    """
    panoptic = pathlib.Path(root) / 'gtFine' / f'cityscapes_panoptic_{split}'
    return CocoPanoptic(
        pathlib.Path(root) / 'leftImg8bit' / split,
        panoptic,
        _json_beside(panoptic),
        categories=categories,
        image_file=lambda image_id: f'{image_id.partition("_")[0]}/{image_id}_leftImg8bit.png',
    )


def _json_beside(folder: pathlib.Path) -> pathlib.Path:
    return folder.with_name(f'{folder.name}.json')


def _existing_folder(path: str | os.PathLike) -> pathlib.Path:
    path = pathlib.Path(path)
    if not path.is_dir():
        raise MissingFileError(
            f'The folder {path} does not exist; check the folder of the data set and the names of '
            'its splits.'
        )
    return path


def _segment_ids(png: np.ndarray) -> np.ndarray:
    """Converts colours [H, W, 3] uint8 to ids [H, W] int32: R + 256 G + 256^2 B."""
    padded = cv2.cvtColor(png, cv2.COLOR_RGB2RGBA).view('<i4')[..., 0]
    return np.bitwise_and(padded, 0xFFFFFF, out=padded)


def _segment_map(ids: np.ndarray, known: np.ndarray, path: pathlib.Path) -> np.ndarray:
    """Converts ids [H, W] to a segment map: 0 = void, k = the k-th of the ascending `known` ids."""
    table = np.concatenate([[0], known]).astype(np.int32)
    starts, lengths = row_runs(ids)
    run_ids = ids.ravel()[starts]
    run_segments = np.searchsorted(table, run_ids).astype(np.int32)
    unlisted = table[np.minimum(run_segments, len(known))] != run_ids
    if unlisted.any():
        raise InputError(
            f'{path}: segment ids {_some(np.unique(run_ids[unlisted]))} are in the PNG but not '
            'in segments_info; list them there, or set their pixels to 0 for void.'
        )
    missing = known[np.bincount(run_segments, minlength=len(table))[1:] == 0]
    if missing.size:
        raise InputError(
            f'{path}: segment ids {_some(missing)} are in segments_info but not in the PNG; '
            'remove them from the JSON.'
        )
    return np.repeat(run_segments, lengths).reshape(ids.shape)


def _some(ids: np.ndarray) -> str:
    return ', '.join(map(str, ids[:5].tolist())) + (', ...' if ids.size > 5 else '')
