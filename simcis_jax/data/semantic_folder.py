"""Semantic segmentation data sets: a folder of images and a folder of label PNGs."""

from __future__ import annotations

import os
import pathlib

import numpy as np

from simcis_jax import types
from simcis_jax.data import decode
from simcis_jax.data.category_list import check_validation_categories, field, parse_categories
from simcis_jax.data.picture_size import picture_size
from simcis_jax.data.source import Example
from simcis_jax.errors import InputError, MissingFileError
from simcis_jax.runtime.json_files import read_json
from simcis_jax.runtime.progress import Progress
from simcis_jax.runtime.threads import map_ahead

VOID = 255  # Label of pixels that belong to no class.
_EXTENSIONS = ('.jpg', '.jpeg', '.png')


class SemanticFolder:
    """Images and label PNGs as a `Source`, with one segment for each class in an image.

    Images are in root/images/SPLIT and label PNGs in root/semantic_SPLIT; an image and its labels
    have the same file name except for the extension. A label is the 0-based position of its class
    in the categories sorted by id; 255 is void. PNGs are grey, or have a palette whose indices are
    the labels. Categories are read from root/categories.json, a list
    `[{"id": 0, "name": "sky"}, ...]`, or if there is none, from root/panoptic_SPLIT.json.

    The constructor decodes every label PNG once, to check it and to find the classes of each image.

    Args:
        root: folder of the data set.
        split: name of the split, as in the names of the folders.
        categories: the categories of the training split, which this split must list too; None if
            this is the training split.
        num_threads: number of threads that decode labels.

    Raises:
        MissingFileError: a folder, an image or the categories are missing.
        InputError: labels or categories are not in the format, or the categories differ from those
            of the training split.
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
            stem = unpaired[0]
            path, folder = (
                (images[stem], root / f'semantic_{split}')
                if stem in images
                else (labels[stem], root / 'images' / split)
            )
            raise MissingFileError(
                f'{path} has no partner in {folder} ({len(unpaired)} such files); an image and its '
                'label PNG must have the same name except for the extension.'
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

    def segments_of(self, index: int) -> list[int]:
        """The class of every segment in an image: there is one of each class."""
        return sorted(self._classes[index])

    def size_of(self, index: int) -> tuple[int, int]:
        """Height and width of an image."""
        return self._sizes[index]

    def check_files(self, index: int) -> None:
        """Checks that an image exists and has the size of its labels."""
        image_path, labels_path = self._files[index]
        size = picture_size(image_path)
        decode.check_same_size(self._sizes[index], labels_path, size, image_path.name)

    def image_bytes(self, index: int) -> int:
        """Size of the image file in bytes."""
        return len(decode.read_bytes(self._files[index][0]))

    def _present(self, index: int) -> tuple[frozenset[int], tuple[int, int], bool]:
        """Classes and size of an image, and whether some of its pixels are void."""
        labels = self._labels(index)
        counts = np.bincount(labels.ravel(), minlength=VOID + 1)
        present = frozenset(np.flatnonzero(counts[:VOID]).tolist())
        return present, labels.shape, bool(counts[VOID])

    def _check_not_binary(self, folder: pathlib.Path, has_void: bool) -> None:
        """Rejects masks of 0 and 255, from which a model would learn only the first class."""
        if has_void and frozenset().union(*self._classes) == {0}:
            raise InputError(
                f'{folder} has the labels 0 and {VOID} alone, and {VOID} is void; if {VOID} marks '
                f'{self.categories.names[1]!r}, write it as 1, the label of that class.'
            )

    def _labels(self, index: int) -> np.ndarray:
        """Reads the labels [H, W] of an image and checks that each is a class or VOID."""
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
    """Makes an example with one segment for each class in a label map.

    Args:
        image: [H, W, 3] uint8, RGB.
        labels: [H, W] unsigned integers; VOID = no class.
        image_id: id of the image.
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
                f'{listed} does not exist, nor does {panoptic.name}; write the classes to '
                f'{listed.name}: [{{"id": 0, "name": "sky"}}, ...].'
            )
        entries, path = read_json(listed, list), listed
    else:
        entries, path = (
            field(read_json(panoptic, dict), 'categories', list, f'{panoptic}'),
            panoptic,
        )
    # The thing flag is optional: semantic segmentation does not use it.
    entries = [{'isthing': 0} | entry if isinstance(entry, dict) else entry for entry in entries]
    categories = parse_categories(entries, f'{path}')
    if len(categories) > VOID:
        raise InputError(
            f'{path} lists {len(categories)} classes; at most {VOID} are possible, because label '
            f'{VOID} is void.'
        )
    if training is None:
        return categories
    check_validation_categories(categories, training, path)
    if len(categories) < len(training):
        raise InputError(
            f'{path} lists {len(categories)} classes, but the training split has {len(training)}; '
            'a label is a position in the list, so both splits need one list: write it to '
            f'{listed}.'
        )
    return training


def _files_by_stem(folder: pathlib.Path) -> dict[str, pathlib.Path]:
    """Maps file name without extension -> path, for the images of a folder."""
    if not folder.is_dir():
        raise MissingFileError(f'The folder {folder} does not exist; check the data set root.')
    files = {}
    for path in sorted(folder.iterdir()):
        if path.suffix.lower() not in _EXTENSIONS or path.name.startswith('.'):
            continue
        if path.stem in files:
            raise InputError(
                f'{path} and {files[path.stem].name} differ only in their extension; remove one.'
            )
        files[path.stem] = path
    if not files:
        raise MissingFileError(f'{folder} holds no image ({", ".join(_EXTENSIONS)}).')
    return files
