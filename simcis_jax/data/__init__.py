"""Data: sources of panoptic examples, augmentation, and the pipelines that batch them."""

from __future__ import annotations

from simcis_jax import types
from simcis_jax.data.coco_panoptic import coco_panoptic_split
from simcis_jax.data.semantic_folder import SemanticFolder
from simcis_jax.data.shapes import Shapes
from simcis_jax.data.source import Source
from simcis_jax.errors import InputError
from simcis_jax.runtime.object_store import check_local, downloaded

SOURCES = ('coco_panoptic', 'prepared', 'semantic_folder', 'shapes')


def open_source(
    name: str,
    split: str,
    *,
    root: str = '',
    size: int = 64,
    num_images: int = 0,
    categories: types.Categories | None = None,
) -> Source:
    """Opens one split of a data set.

    Args:
        name: one of SOURCES.
        split: name of the split; 'shapes' has 'train' and 'val', the others have what is in `root`.
        root: folder of the data set; ignored by 'shapes'. That of 'prepared' may be an address in
            an object store, from which it is copied to the user's cache.
        size: side of the images in pixels, for 'shapes' only.
        num_images: number of images, for 'shapes' only; 0 = its default.
        categories: the categories of the training split, which define the labels of all splits;
            None if this is the training split. Ignored by 'prepared' and 'shapes', whose splits
            share one list.

    Raises:
        InputError: `name` is unknown, `root` is empty although the data set needs it, or the
            categories of the split differ from those of the training split.
        FileNotFoundError: a file or folder is missing.
    """
    if name == 'shapes':
        return Shapes(split, size=size, num_images=num_images or None)
    if name not in SOURCES:
        raise InputError(f'data.name={name!r} is unknown; it must be one of {SOURCES}.')
    if not root:
        raise InputError(
            f'data.name={name!r} needs the folder of the data set: --config.data.root=FOLDER'
        )
    if name != 'prepared':
        check_local(root, 'data.root', 'a prepared data set may be in an object store, no other')
    if name == 'semantic_folder':
        return SemanticFolder(root, split, categories)
    if name == 'prepared':
        from simcis_jax.data.prepared import Prepared  # TFDS is slow to import.

        return Prepared(downloaded(root), split)
    return coco_panoptic_split(root, split, categories)
