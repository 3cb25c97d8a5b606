"""The image files that a user means by paths, folders and patterns."""

from __future__ import annotations

import glob
import os
from collections.abc import Iterator, Sequence
from pathlib import Path

from simcis_jax.errors import InputError, MissingFileError, reading
from simcis_jax.prediction.prediction_folder import KINDS, RESULTS

# What a folder is searched for; a file that is named is read whatever its name.
SUFFIXES = ('.jpg', '.jpeg', '.png', '.webp', '.bmp', '.tif', '.tiff', '.ppm', '.pgm', '.jp2')


def find_images(images: Sequence[str | Path], out: str | Path) -> list[Path]:
    """Image files, sorted, each once.

    Args:
        images: each a file; a folder, which stands for all images in it and in its folders; or a
            pattern of files and folders, as of `glob`, where `**` is any number of folders. What
            exists by its own name is no pattern: IMG[1].jpg is that file, if there is one.
        out: folder for results, whose own files are left out, as are those of earlier predictions
            in a folder.

    Raises:
        MissingFileError: a path does not exist.
        InputError: a pattern fits nothing, or there is no image.
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
    """The existing path of this name, or else what fits the pattern."""
    if os.path.exists(given):
        return [Path(given)]
    if not glob.has_magic(given):
        raise MissingFileError(f'--images={given} does not exist; check the path.')
    # As far as folders have exactly these names, they are no pattern.
    literal, rest = Path(given).parent, [Path(given).name]
    while not literal.is_dir():
        literal, rest = literal.parent, [literal.name, *rest]
    found = glob.glob(os.path.join(glob.escape(str(literal)), *rest), recursive=True)
    if not found:
        raise InputError(
            f'--images={given} fits no file; in a pattern * is any text, ** any folders, [ab] is '
            'a or b, and [[] is the bracket [ itself.'
        )
    return [Path(path) for path in found]


def _images_in(folder: Path) -> Iterator[Path]:

    def stop(error: OSError) -> None:
        raise error

    with reading(folder):
        for root, folders, files in os.walk(folder, onerror=stop):
            if RESULTS in files:  # Of an earlier prediction.
                folders[:] = [name for name in folders if name not in KINDS]
            folders[:] = [name for name in folders if not name.startswith('.')]
            for name in files:
                if name.lower().endswith(SUFFIXES) and not name.startswith('.'):
                    yield Path(root) / name
