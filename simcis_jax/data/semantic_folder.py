"""A folder of images and PNGs of class labels, the plain form of semantic segmentation data."""

from __future__ import annotations

import os
import pathlib

import numpy as np

from simcis_jax import types
from simcis_jax.data import decode
from simcis_jax.data.category_list import (
    check_validation_categories,
    field,
    parse_categories,
    read_json,
)
from simcis_jax.data.picture_size import picture_size
from simcis_jax.data.source import Example
from simcis_jax.errors import InputError, MissingFileError
from simcis_jax.runtime.progress import Progress
from simcis_jax.runtime.threads import map_ahead

VOID = 255  # Label of pixels that belong to no class.
_EXTENSIONS = ('.jpg', '.jpeg', '.png')


class SemanticFolder:
    """Images and label PNGs as a `Source`; a segment is all there is of a class in an image.

    The layout is root/images/SPLIT and root/semantic_SPLIT, with files of one name but for the
    extension. A label is the position of its class (0 is the first) in the categories sorted by
    id, and 255 is void; a PNG is grey or has a palette whose indices are the labels. Categories
    come from root/categories.json, a list `[{"id": 0, "name": "sky"}, ...]`, else from
    root/panoptic_SPLIT.json.

    Construction decodes every label PNG once, which checks them and tells the classes of an image.

    Args:
        root: folder of the data set.
        split: 'train', 'val' or what the folders are called.
        categories: of the training split, which this split must list as well; None = this is the
            training split.
        num_threads: threads that decode labels.

    Raises:
        MissingFileError: a folder, an image or the categories are missing.
        InputError: labels or categories break the format, or the categories are not those of the
            training split.
    """

    def __init__(
        self,
        root: str | os.PathLike,
        split: str,
        categories: types.Categories | None = None,
        *,
        num_threads: int = 4,
    ):
        root = pathlib.Path(root)
        self.name = f'{root.name}_{split}'
        self.categories = _categories(root, split, categories)
        images = _files_by_stem(root / 'images' / split)
        labels = _files_by_stem(root / f'semantic_{split}')
        if unpaired := sorted(images.keys() ^ labels.keys()):
            lonely = images.get(unpaired[0]) or labels.get(unpaired[0])
            raise MissingFileError(
                f'{lonely} has no partner in {root / "images" / split} or '
                f'{root / f"semantic_{split}"} ({len(unpaired)} like it); an image and its labels '
                'need one name, but for the extension.'
            )
        self._files = [(images[stem], labels[stem]) for stem in sorted(images)]
        progress = Progress(f'{self.name} labels', len(self), 'images', only_if_slow=True)
        found = []
        for present in map_ahead(self._present, range(len(self)), num_threads=num_threads):
            found.append(present)
            progress.advance()
        self._classes, self._sizes, has_void = zip(*found, strict=True)
        if categories is None and len(self.categories) > 1:
            self._check_not_binary(root / f'semantic_{split}', any(has_void))

    def __len__(self) -> int:
        return len(self._files)

    def __getitem__(self, index: int) -> Example:
        image_path, labels_path = self._files[index]
        image, labels = decode.read_image(image_path), self._labels(index)
        decode.check_same_size(labels.shape, labels_path, image.shape, image_path.name)
        return semantic_example(image, labels, image_path.stem)

    def classes_of(self, index: int) -> frozenset[int]:
        """Classes with at least one pixel in an image."""
        return self._classes[index]

    def size_of(self, index: int) -> tuple[int, int]:
        """Height and width of an image."""
        return self._sizes[index]

    def check_files(self, index: int) -> None:
        """Checks that an image exists and is as large as its labels."""
        image_path, labels_path = self._files[index]
        size = picture_size(image_path)
        decode.check_same_size(self._sizes[index], labels_path, size, image_path.name)

    def image_bytes(self, index: int) -> int:
        """Bytes of the image file."""
        return len(decode.read_bytes(self._files[index][0]))

    def _present(self, index: int) -> tuple[frozenset[int], tuple[int, int], bool]:
        """Classes and size of an image, and whether some of its pixels are void."""
        labels = self._labels(index)
        counts = np.bincount(labels.ravel(), minlength=VOID + 1)
        present = frozenset(np.flatnonzero(counts[:VOID]).tolist())
        return present, labels.shape, bool(counts[VOID])

    def _check_not_binary(self, folder: pathlib.Path, has_void: bool) -> None:
        """Refuses masks of 0 and 255, which would teach the first class and nothing else."""
        if has_void and frozenset().union(*self._classes) == {0}:
            raise InputError(
                f'{folder} has the labels 0 and {VOID} alone, and {VOID} is void; '
                f'{self.categories.names[1]!r} has label 1: write {VOID} as 1 where it marks a '
                'class.'
            )

    def _labels(self, index: int) -> np.ndarray:
        """The labels [H, W] of an image, each a class or VOID."""
        path = self._files[index][1]
        labels = decode.decode_labels(decode.read_bytes(path), path)
        counts = np.bincount(labels.ravel(), minlength=VOID + 1)
        wrong = np.flatnonzero(counts)
        wrong = wrong[(wrong >= len(self.categories)) & (wrong != VOID)]
        if wrong.size:
            raise InputError(
                f'{path} has label {wrong[0]}, but there are {len(self.categories)} classes; '
                f'labels must be 0 to {len(self.categories) - 1}, or {VOID} for void.'
            )
        return labels


def semantic_example(image: np.ndarray, labels: np.ndarray, image_id: str | int) -> Example:
    """An example with one segment for each label of the map but VOID.

    Args:
        image: [H, W, 3] uint8, RGB.
        labels: [H, W] unsigned integers; VOID = no class.
        image_id: name of the image.
    """
    present = np.flatnonzero(np.bincount(labels.ravel(), minlength=VOID + 1))
    present = present[present != VOID]
    slot_of = np.zeros(VOID + 1, np.int32)
    slot_of[present] = np.arange(1, len(present) + 1)
    return Example(
        image=image,
        segment_map=slot_of[labels],
        labels=present.astype(np.int32),
        crowd=np.zeros(len(present), bool),
        image_id=image_id,
    )


def _categories(
    root: pathlib.Path, split: str, training: types.Categories | None
) -> types.Categories:
    listed, panoptic = root / 'categories.json', root / f'panoptic_{split}.json'
    if listed.is_file() or not panoptic.is_file():
        if not listed.is_file():
            raise MissingFileError(
                f'{listed} does not exist, nor does {panoptic.name}; write the classes there: '
                '[{"id": 0, "name": "sky"}, ...].'
            )
        entries, path = read_json(listed, list), listed
    else:
        entries, path = (
            field(read_json(panoptic, dict), 'categories', list, f'{panoptic}'),
            panoptic,
        )
    # Semantic segmentation has no use for the thing flag, so it may be left out.
    entries = [{'isthing': 0} | entry if isinstance(entry, dict) else entry for entry in entries]
    categories = parse_categories(entries, f'{path}')
    if len(categories) > VOID:
        raise InputError(
            f'{path} lists {len(categories)} classes; at most {VOID} are possible, label {VOID} is '
            'void.'
        )
    if training is None:
        return categories
    check_validation_categories(categories, training, path)
    if len(categories) < len(training):
        raise InputError(
            f'{path} lists {len(categories)} classes and that of the training split '
            f'{len(training)}; a label is a position in the list, so both splits need one list: '
            f'write it to {listed}.'
        )
    return training


def _files_by_stem(folder: pathlib.Path) -> dict[str, pathlib.Path]:
    """The pictures of a folder by their name without extension."""
    if not folder.is_dir():
        raise MissingFileError(f'The folder {folder} does not exist; check the data set root.')
    files = {}
    for path in sorted(folder.iterdir()):
        if path.suffix.lower() not in _EXTENSIONS or path.name.startswith('.'):
            continue
        if path.stem in files:
            raise InputError(f'{path} and {files[path.stem].name} have one name; remove one.')
        files[path.stem] = path
    if not files:
        raise MissingFileError(f'{folder} holds no picture ({", ".join(_EXTENSIONS)}).')
    return files
