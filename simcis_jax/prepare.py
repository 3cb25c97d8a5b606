"""The command that converts downloaded data sets to TFDS data sets in ArrayRecord files.

    python -m simcis_jax.prepare ade20k --source=DOWNLOADS --data_dir=DIR
    python -m simcis_jax.prepare coco_panoptic --source=DOWNLOADS --data_dir=DIR
    python -m simcis_jax.prepare cityscapes --source=DOWNLOADS --data_dir=DIR

A config reads the result with data.name='prepared' and data.root='DIR/NAME'. TensorFlow is not
needed.
"""

from __future__ import annotations

import contextlib
import functools
import os
import re
import shutil
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from simcis_jax import types
from simcis_jax.data import prepared
from simcis_jax.data.ade20k import Ade20k
from simcis_jax.data.coco_panoptic import cityscapes_split, coco_panoptic_split, coco_split
from simcis_jax.data.downloaded_split import DownloadedSplit, checksum
from simcis_jax.errors import FileError, InputError, UserError, writing
from simcis_jax.runtime import command, lease
from simcis_jax.runtime.progress import Progress
from simcis_jax.runtime.threads import map_ahead

SPLITS = ('train', 'val')
# The first argument of the command -> the data sets that it prepares.
KINDS = {
    'ade20k': ('ade20k_panoptic', 'ade20k_semantic'),
    'ade20k_panoptic': ('ade20k_panoptic',),
    'ade20k_semantic': ('ade20k_semantic',),
    'coco_panoptic': ('coco_panoptic',),
    'cityscapes': ('cityscapes',),
}
NUM_IMAGES = {
    'ade20k_panoptic': {'train': 20_210, 'val': 2_000},
    'ade20k_semantic': {'train': 20_210, 'val': 2_000},
    'coco_panoptic': {'train': 118_287, 'val': 5_000},
    'cityscapes': {'train': 2_975, 'val': 500},
}


def prepare(
    kind: str,
    source: str | os.PathLike,
    data_dir: str | os.PathLike,
    *,
    name: str = '',
    allow_partial: bool = False,
    skip_bad: bool = False,
) -> list[str]:
    """Prepares the data sets of a download; each is written completely or not at all.

    A data set that was prepared before is checked against the download and kept.

    Args:
        kind: one of KINDS.
        source: folder of the download; 'coco_panoptic' also takes the layout of
            `coco_panoptic_split`.
        data_dir: folder in which the folder of the data set is created.
        name: name of a data set that is in the COCO panoptic format but is not COCO.
        allow_partial: whether to accept an incomplete download.
        skip_bad: whether to leave out images that cannot be read, and list them in skipped.txt,
            instead of raising an error.

    Returns:
        one line per data set that says what it holds and how to use it.

    Raises:
        InputError: the download is incomplete or damaged, or a data set prepared from another
            download exists.
        FileError: a file or folder is missing or cannot be written.
    """
    if name and kind != 'coco_panoptic':
        raise InputError(f'--name={name} is only for coco_panoptic; the name of {kind} is fixed.')
    if name and not re.fullmatch('[a-z][a-z0-9_]*', name):
        raise InputError(
            f'--name={name} must consist of lower-case letters, digits and underscores, and begin '
            'with a letter.'
        )
    lines = []
    for dataset in KINDS[kind]:
        dataset = name or dataset
        splits, categories = {}, None
        for split in SPLITS:
            splits[split] = _open(kind, dataset, source, split, categories, allow_partial)
            categories = splits['train'].categories
        _check_counts(dataset, splits, allow_partial)
        root = Path(data_dir) / dataset
        with _locked(root):
            folder = root / prepared.VERSION
            checksums = {split: checksum(images) for split, images in splits.items()}
            if not folder.exists():
                _write(root, folder, splits, checksums, skip_bad)
            lines.append(_check_and_describe(root, folder, splits, checksums))
    return lines


def _open(
    kind: str,
    dataset: str,
    source: str | os.PathLike,
    split: str,
    categories: types.Categories | None,
    allow_partial: bool,
) -> DownloadedSplit:
    if kind == 'cityscapes':
        return cityscapes_split(source, split, categories)
    if kind == 'coco_panoptic':
        is_coco = (Path(source) / 'annotations').is_dir()
        return (coco_split if is_coco else coco_panoptic_split)(source, split, categories)
    content = dataset.removeprefix('ade20k_')
    return Ade20k(source, split, content, allow_partial=allow_partial)


def _check_counts(dataset: str, splits: Mapping[str, DownloadedSplit], allow_partial: bool) -> None:
    for split, images in splits.items():
        if len(images) == 0:
            raise InputError(
                f'{dataset} has no {split} images in the download; complete it, or list images and '
                'their annotations in its JSON.'
            )
        expected = NUM_IMAGES.get(dataset, {}).get(split, len(images))
        if len(images) != expected and not allow_partial:
            way_out = 'complete the download, or accept it with --allow_partial'
            if dataset == 'coco_panoptic':
                way_out += '; give a data set other than COCO its own --name'
            raise InputError(
                f'{dataset} has {expected} {split} images, but the download has {len(images)}; '
                f'{way_out}.'
            )


def _write(
    root: Path,
    folder: Path,
    splits: Mapping[str, DownloadedSplit],
    checksums: Mapping[str, str],
    skip_bad: bool,
) -> None:
    """Writes the data set to a temporary folder, and renames it once it is complete."""
    incomplete = root / 'incomplete'
    shutil.rmtree(incomplete, ignore_errors=True)  # Left by an interrupted preparation.
    part = incomplete / folder.name
    try:
        with writing(part):
            part.mkdir(parents=True)
            skipped = []
            written = {
                split: prepared.write_split(
                    part, root.name, split, _records(root.name, split, images, skip_bad, skipped)
                )
                for split, images in splits.items()
            }
            if empty := [split for split, content in written.items() if not content.segments]:
                raise InputError(
                    f'None of the {empty[0]} images can be read; the first error is: {skipped[0]}'
                )
            prepared.write_metadata(
                part,
                splits['train'].categories,
                written,
                checksums,
                description='Images with one segment map and the classes of its segments.',
            )
            if skipped:
                text = ''.join(f'{line}\n' for line in skipped)
                (part / 'skipped.txt').write_text(text, 'utf-8', 'surrogateescape')
            part.rename(folder)
    finally:
        shutil.rmtree(incomplete, ignore_errors=True)


def _records(
    dataset: str, split: str, images: DownloadedSplit, skip_bad: bool, skipped: list[str]
) -> Iterator[prepared.Record]:
    """Creates the records of a split on all cores; appends skipped images to `skipped`."""
    progress = Progress(f'{dataset} {split}', len(images), 'images')
    load = functools.partial(_record_or_reason, images)
    for result in map_ahead(load, range(len(images)), num_threads=os.cpu_count() or 1):
        if isinstance(result, prepared.Record):
            yield result
        elif skip_bad:
            skipped.append(f'{split}: {result}')
        else:
            raise InputError(f'{result} --skip_bad leaves out such images.')
        progress.advance()


def _record_or_reason(images: DownloadedSplit, index: int) -> prepared.Record | str:
    try:
        return prepared.to_record(*images.read(index))
    except UserError as error:
        return str(error)


def _check_and_describe(
    root: Path, folder: Path, splits: Mapping[str, DownloadedSplit], checksums: Mapping[str, str]
) -> str:
    """Checks that the folder was prepared from this download, and describes it in one line."""
    skipped, sizes = [], {}
    if (folder / 'skipped.txt').exists():
        skipped = (folder / 'skipped.txt').read_text('utf-8', 'surrogateescape').splitlines()
    for split, images in splits.items():
        found = prepared.Prepared(folder, split)
        sizes[split] = len(found)
        lost = sum(line.startswith(f'{split}: ') for line in skipped)
        if sizes[split] + lost != len(images):
            raise InputError(
                f'{folder} holds {sizes[split]} {split} images, the download {len(images)}: it was '
                'prepared from another one; remove it to prepare it anew.'
            )
        if found.checksum != checksums[split]:
            raise InputError(
                f'{folder} was not prepared from these annotations of {split}: they have changed, '
                'or it holds no checksum of them; remove it to prepare it anew.'
            )
    categories = found.categories
    words = ', '.join(f'{size} {split}' for split, size in sizes.items())
    if skipped:
        words += f' images, {len(skipped)} skipped (see {folder / "skipped.txt"})'
    else:
        words += ' images'
    return (
        f'{root}: {words}, {len(categories)} classes ({sum(categories.is_thing)} things); '
        f'use it with --config.data.name=prepared --config.data.root={root}'
    )


@contextlib.contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """Creates a folder and locks it against other processes."""
    with contextlib.ExitStack() as locks:
        try:
            folder.mkdir(parents=True, exist_ok=True)
            descriptor = os.open(folder, os.O_RDONLY)
        except OSError as error:
            raise FileError(
                f'{folder} cannot be created ({error.strerror}); choose another --data_dir.'
            ) from None
        locks.callback(os.close, descriptor)
        try:
            locks.enter_context(lease.locked(descriptor, folder))
        except BlockingIOError:
            raise InputError(
                f'{folder} is being prepared by another process; wait for it.'
            ) from None
        yield


def main(arguments: Sequence[str] | None = None) -> None:
    """Runs the command."""
    parser = command.make_parser(
        'simcis_jax.prepare', 'Converts downloaded data sets to ArrayRecord.'
    )
    parser.add_argument('kind', choices=KINDS, help='Data set to prepare.')
    parser.add_argument(
        '--source', type=command.path, required=True, help='Folder with the downloaded files.'
    )
    parser.add_argument(
        '--data_dir', type=command.path, required=True, help='Folder to create the data set in.'
    )
    parser.add_argument(
        '--name', default='', help='Name of a data set in COCO format that is not COCO itself.'
    )
    parser.add_argument(
        '--allow_partial', action='store_true', help='Accept an incomplete download.'
    )
    parser.add_argument(
        '--skip_bad', action='store_true', help='Leave out images that cannot be read.'
    )
    values = vars(parser.parse_args(arguments))
    kind, source = values.pop('kind'), values.pop('source')

    def program() -> None:
        for line in prepare(kind, source, **values):
            print(line)

    command.start(program, uses_devices=False)


if __name__ == '__main__':
    main()
