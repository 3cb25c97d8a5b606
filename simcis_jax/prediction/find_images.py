"""Finds image files by path, folder and glob pattern."""

from __future__ import annotations

import glob
import os
from collections.abc import Iterator, Sequence
from pathlib import Path

from simcis_jax.errors import InputError, MissingFileError, reading
from simcis_jax.prediction.prediction_folder import KINDS, RESULTS

# Extensions of the images in a folder; a file given by its path may have any extension.
SUFFIXES = ('.jpg', '.jpeg', '.png', '.webp', '.bmp', '.tif', '.tiff', '.ppm', '.pgm', '.jp2')


def find_images(images: Sequence[str | Path], out: str | Path) -> list[Path]:
    """The image files that paths, folders and patterns refer to, sorted, without duplicates.

    Args:
        images: paths, each of a file; of a folder, which is searched recursively; or a recursive
            `glob` pattern of files and folders. An existing path is never taken for a pattern, so
            IMG[1].jpg finds the file of this name.
        out: folder for the results. Result images in it, and those of earlier predictions in a
            searched folder, are left out.

    Raises:
        MissingFileError: a path does not exist.
        InputError: a pattern matches no file, or there is no image at all.
    """
    results = [Path(os.path.abspath(out)) / kind for kind in KINDS]
    found = {}
    for given in images:
        for path in _matching(str(given)):
            for file in _images_in(path) if path.is_dir() else [path]:
                absolute = Path(os.path.abspath(file))
                if not any(result in absolute.parents for result in results):
                    found.setdefault(absolute, file)
    if not found:
        raise InputError(
            f'--images={" ".join(map(str, images))}: there is no image; a folder must hold files '
            f'whose names end in {", ".join(SUFFIXES)}.'
        )
    return sorted(found.values())


def _matching(given: str) -> list[Path]:
    """The path itself if it exists, else the paths that match it as a pattern."""
    if os.path.lexists(given):  # Also a broken link, which is then an image without a result.
        return [Path(given)]
    if not glob.has_magic(given):
        raise MissingFileError(f'--images={given} does not exist; check the path.')
    # The leading folders that exist are taken literally.
    literal, rest = Path(given).parent, [Path(given).name]
    while not literal.is_dir():
        literal, rest = literal.parent, [literal.name, *rest]
    found = glob.glob(os.path.join(glob.escape(str(literal)), *rest), recursive=True)
    if not found:
        raise InputError(
            f'--images={given} matches no file; in a pattern * stands for any text, ** for any '
            'folders, [ab] for a or b, and [[] for the bracket [ itself.'
        )
    return [Path(path) for path in found]


def _images_in(folder: Path) -> Iterator[Path]:

    def stop(error: OSError) -> None:
        raise error

    with reading(folder):
        known = set()  # Linked folders may form a cycle.
        for root, folders, files in os.walk(folder, onerror=stop, followlinks=True):
            if (real := os.path.realpath(root)) in known:
                folders.clear()
                continue
            known.add(real)
            if RESULTS in files:  # The output folder of an earlier prediction.
                folders[:] = [name for name in folders if name not in KINDS]
            folders[:] = [name for name in folders if not name.startswith('.')]
            for name in files:
                if name.lower().endswith(SUFFIXES) and not name.startswith('.'):
                    yield Path(root) / name
