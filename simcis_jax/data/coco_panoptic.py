"""Any data set in the COCO panoptic format: images, PNGs of segment ids, and one JSON."""

from __future__ import annotations

import colorsys
import json
import os
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import cv2
import numpy as np

from simcis_jax import types
from simcis_jax.data.source import Example


class _Record(NamedTuple):
    image_id: str | int
    image_file: str
    size: tuple[int, int]  # height, width
    panoptic_file: str
    segment_ids: np.ndarray  # [n] int64, ascending
    labels: np.ndarray  # [n] int32
    crowd: np.ndarray  # [n] bool


class CocoPanoptic:
    """A COCO panoptic data set as a `Source`.

    Category ids may start anywhere and have gaps; classes are the categories sorted by id.
    Construction reads the JSON alone, pictures are decoded when an example is asked for.

    Args:
        images: folder of the images.
        panoptic: folder of the PNGs, whose colour R + 256 G + 65536 B is a segment's id.
        annotations: the JSON file.
        categories: COCO category entries that replace those of the JSON.

    Raises:
        FileNotFoundError: a file or folder is missing.
        ValueError: the JSON or a picture breaks the format.
    """

    def __init__(
        self,
        images: str | os.PathLike,
        panoptic: str | os.PathLike,
        annotations: str | os.PathLike,
        *,
        categories: Sequence[Mapping[str, Any]] | None = None,
    ):
        self._images = _existing_folder(images)
        self._panoptic = _existing_folder(panoptic)
        path = pathlib.Path(annotations)
        content = _read_json(path)
        if categories is None:
            categories = _field(content, 'categories', list, f'{path}')
        ordered = _sorted_categories(categories, path)
        label_of = {entry['id']: label for label, entry in enumerate(ordered)}
        self.name = path.stem
        self.categories = types.Categories(
            names=tuple(str(entry['name']) for entry in ordered),
            is_thing=tuple(bool(entry['isthing']) for entry in ordered),
            colors=_colors(ordered),
        )
        self._records = _read_records(content, label_of, path)

    def __len__(self) -> int:
        return len(self._records)

    def __getitem__(self, index: int) -> Example:
        record = self._records[index]
        image = read_image(self._images / record.image_file)
        panoptic_path = self._panoptic / record.panoptic_file
        ids = _segment_ids(read_image(panoptic_path))
        if ids.shape != image.shape[:2]:
            raise ValueError(
                f'{panoptic_path} is {_size(ids)} and {record.image_file} is {_size(image)} pixels '
                '(width x height); both must be equal: write the PNG at the size of the image.'
            )
        return Example(
            image=image,
            segment_map=_segment_map(ids, record.segment_ids, panoptic_path),
            labels=record.labels,
            crowd=record.crowd,
            image_id=record.image_id,
        )

    def classes_of(self, index: int) -> frozenset[int]:
        """Classes with at least one non-crowd segment in an image, from the JSON."""
        record = self._records[index]
        return frozenset(record.labels[~record.crowd].tolist())

    def size_of(self, index: int) -> tuple[int, int]:
        """Height and width of an image, from the JSON."""
        return self._records[index].size


def coco_panoptic_split(root: str | os.PathLike, split: str) -> CocoPanoptic:
    """Opens the layout root/images/SPLIT, root/panoptic_SPLIT, root/panoptic_SPLIT.json."""
    root = pathlib.Path(root)
    return CocoPanoptic(
        root / 'images' / split, root / f'panoptic_{split}', root / f'panoptic_{split}.json'
    )


def read_image(path: str | os.PathLike) -> np.ndarray:
    """Reads a picture as RGB [H, W, 3] uint8, grey and CMYK too, as stored (EXIF ignored).

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file is empty, cut off or no picture.
    """
    path = pathlib.Path(path)
    if not path.is_file():
        raise FileNotFoundError(f'{path} does not exist; check the folder and the file name.')
    encoded = np.fromfile(path, np.uint8)
    flags = cv2.IMREAD_COLOR | cv2.IMREAD_IGNORE_ORIENTATION
    image = cv2.imdecode(encoded, flags) if encoded.size else None
    if image is None:
        raise ValueError(
            f'{path} ({encoded.size} bytes) cannot be decoded; it is cut off or no picture: '
            'replace the file.'
        )
    return cv2.cvtColor(image, cv2.COLOR_BGR2RGB)


def _existing_folder(path: str | os.PathLike) -> pathlib.Path:
    path = pathlib.Path(path)
    if not path.is_dir():
        raise FileNotFoundError(f'The folder {path} does not exist; check the data set root.')
    return path


def _read_json(path: pathlib.Path) -> dict[str, Any]:
    if not path.is_file():
        raise FileNotFoundError(f'{path} does not exist; check the data set root.')
    try:
        content = json.loads(path.read_bytes())
    except ValueError as error:
        raise ValueError(f'{path} is not JSON ({error}); replace the file.') from None
    if not isinstance(content, dict):
        raise ValueError(f'{path} holds a {type(content).__name__}; a JSON object is needed.')
    return content


def _field(entry: Any, name: str, kind: type | tuple[type, ...], where: str) -> Any:
    """The field of an entry of the JSON, or an error that says where it is missing."""
    value = entry.get(name) if isinstance(entry, Mapping) else None
    if not isinstance(value, kind):
        kinds = kind if isinstance(kind, tuple) else (kind,)
        wanted = ' or '.join(kind.__name__ for kind in kinds)
        raise ValueError(
            f'{where}: field {name!r} is {value!r}, but a COCO panoptic file needs {wanted} there.'
        )
    return value


def _sorted_categories(
    categories: Sequence[Mapping[str, Any]], path: pathlib.Path
) -> list[Mapping[str, Any]]:
    for position, entry in enumerate(categories):
        for name, kind in (('id', int), ('name', str), ('isthing', int)):
            _field(entry, name, kind, f'{path}: categories[{position}]')
        color = entry.get('color', [0, 0, 0])
        if not (isinstance(color, (list, tuple)) and [type(c) for c in color] == [int] * 3):
            raise ValueError(
                f"{path}: categories[{position}]: field 'color' is {color!r}; give three integers "
                '(red, green, blue), or leave it out.'
            )
    ordered = sorted(categories, key=lambda entry: entry['id'])
    for left, right in zip(ordered, ordered[1:], strict=False):
        if left['id'] == right['id']:
            raise ValueError(f'{path}: category id {left["id"]} occurs twice; ids must differ.')
    return ordered


def _colors(ordered: Sequence[Mapping[str, Any]]) -> tuple[tuple[int, int, int], ...]:
    colors = []
    for label, entry in enumerate(ordered):
        if 'color' in entry:
            color = entry['color']
        else:
            # Steps of the golden ratio keep neighbouring classes far apart on the colour wheel.
            hue, value = label * 0.618034 % 1.0, 0.6 + 0.2 * (label % 3)
            color = (255 * channel for channel in colorsys.hsv_to_rgb(hue, 0.7, value))
        colors.append(tuple(int(channel) for channel in color))
    return tuple(colors)


def _read_records(
    content: dict[str, Any], label_of: dict[int, int], path: pathlib.Path
) -> list[_Record]:
    images = {}
    for position, entry in enumerate(_field(content, 'images', list, f'{path}')):
        where = f'{path}: images[{position}]'
        size = tuple(_field(entry, side, int, where) for side in ('height', 'width'))
        name = _field(entry, 'file_name', str, where)
        images[_field(entry, 'id', (int, str), where)] = name, size
    records = []
    for position, entry in enumerate(_field(content, 'annotations', list, f'{path}')):
        where = f'{path}: annotations[{position}]'
        image_id = _field(entry, 'image_id', (int, str), where)
        if image_id not in images:
            raise ValueError(
                f'{where}: image_id {image_id!r} is not listed under "images"; list it there.'
            )
        segments = _field(entry, 'segments_info', list, where)
        ids = [_field(segment, 'id', int, where) for segment in segments]
        category_ids = [_field(segment, 'category_id', int, where) for segment in segments]
        if unknown := sorted(set(category_ids) - label_of.keys()):
            raise ValueError(
                f'{where}: category ids {unknown} are not listed under "categories"; '
                'list them there.'
            )
        if len(set(ids)) < len(ids) or any(segment_id <= 0 for segment_id in ids):
            raise ValueError(
                f'{where}: segment ids {sorted(ids)} must be positive and differ; fix the JSON.'
            )
        order = np.argsort(ids)
        labels = [label_of[category_id] for category_id in category_ids]
        crowd = [bool(segment.get('iscrowd', 0)) for segment in segments]
        records.append(
            _Record(
                image_id,
                *images[image_id],
                _field(entry, 'file_name', str, where),
                np.asarray(ids, np.int64)[order],
                np.asarray(labels, np.int32)[order],
                np.asarray(crowd, bool)[order],
            )
        )
    return records


def _segment_ids(png: np.ndarray) -> np.ndarray:
    """Colours [H, W, 3] to ids [H, W] int32."""
    red, green, blue = np.moveaxis(png.astype(np.int32), -1, 0)
    return red + (green << 8) + (blue << 16)


def _segment_map(ids: np.ndarray, known: np.ndarray, path: pathlib.Path) -> np.ndarray:
    """Ids [H, W] to 0 for void and k for the k-th known id, which ascend."""
    table = np.concatenate([[0], known]).astype(np.int32)
    segment_map = np.searchsorted(table, ids).astype(np.int32)
    strangers = table[np.minimum(segment_map, len(known))] != ids
    if strangers.any():
        raise ValueError(
            f'{path}: segment ids {_some(np.unique(ids[strangers]))} are painted but not listed in '
            'segments_info; list them, or paint them 0 for void.'
        )
    missing = known[np.bincount(segment_map.ravel(), minlength=len(table))[1:] == 0]
    if missing.size:
        raise ValueError(
            f'{path}: segment ids {_some(missing)} are listed in segments_info but not painted; '
            'remove them from the JSON.'
        )
    return segment_map


def _some(ids: np.ndarray) -> str:
    return ', '.join(map(str, ids[:5].tolist())) + (', ...' if ids.size > 5 else '')


def _size(picture: np.ndarray) -> str:
    return f'{picture.shape[1]}x{picture.shape[0]}'
