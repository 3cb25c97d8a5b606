"""The command that segments a user's own images.

    python -m simcis_jax.predict --checkpoint=runs/a/stage_3 --images='photos/*.jpg' --out=predicted

In Python, `load` gives the same as a function of arrays:

    predictor = simcis_jax.predict.load('runs/a/stage_3')
    result = predictor(image)
"""

from __future__ import annotations

import argparse
import glob
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from absl import flags, logging
from ml_collections import config_flags

from simcis_jax.data.decode import read_image
from simcis_jax.main import is_for_user, parse_flags, stop
from simcis_jax.prediction.prediction_folder import KINDS, PredictionFolder
from simcis_jax.prediction.predictor import Prediction, Predictor, PreparedImage, load
from simcis_jax.runtime.allocator import configure_malloc
from simcis_jax.runtime.compilation import enable_compilation_cache
from simcis_jax.runtime.progress import Progress
from simcis_jax.runtime.threads import map_ahead

__all__ = ['Prediction', 'Predictor', 'load', 'predict_files']


def predict_files(predictor: Predictor, images: str, out: str | Path) -> dict[Path, str]:
    """Segments image files; see `PredictionFolder` for what is written.

    Args:
        predictor: of `load`.
        images: pattern of the files, such as 'photos/**/*.jpg'.
        out: folder for the results.

    Returns:
        The files that could not be read, each with the reason.

    Raises:
        ValueError: no file fits the pattern.
        OSError: results cannot be written.
    """
    paths = _matching(images, Path(out))
    folder = PredictionFolder(out, predictor.categories, paths)
    progress = Progress('predicted', len(paths), 'images')
    failed = {}

    def read(path: Path) -> PreparedImage | tuple[Path, Exception]:
        try:
            return predictor.prepare(path, read_image(path, upright=True))
        except (ValueError, OSError) as error:
            return path, error

    def readable():
        for item in map_ahead(read, paths):
            if isinstance(item, PreparedImage):
                yield item
            else:
                path, error = item
                failed[path] = str(error)
                progress.advance()

    def write(item: tuple[PreparedImage, Prediction]) -> None:
        image, prediction = item
        folder.add(image.key, image.image, prediction)

    try:
        for _ in map_ahead(write, predictor.predict(readable())):
            progress.advance()
    finally:
        folder.write_json()  # Of what is done, also where something stops the rest.
    return failed


def read_config(path: str, overrides: Sequence[str]) -> Mapping[str, Any]:
    """A config file with `--config.GROUP.KEY=VALUE` applied; bad ones end the program."""
    values = flags.FlagValues()
    arguments = ['simcis_jax.predict', f'--config={path}', *overrides]
    # Without `sys_argv` it would take the values of this program's own command line.
    config_flags.DEFINE_config_file(
        'config', None, lock_config=True, flag_values=values, sys_argv=arguments
    )
    parse_flags(arguments, values)
    return values['config'].value.to_dict()


def main(arguments: Sequence[str] | None = None) -> None:
    """Runs the command; bad input ends it with one line, unreadable images with a list of them."""
    parser = argparse.ArgumentParser(
        prog='simcis_jax.predict', description='Segments images.', allow_abbrev=False
    )
    parser.add_argument('--checkpoint', required=True, help='Folder stage_N of a run.')
    parser.add_argument('--images', required=True, help="Pattern in quotes: 'photos/**/*.jpg'.")
    parser.add_argument('--out', required=True, help='Folder for the results.')
    parser.add_argument('--config', help='Config file, where the run has none; keys can be set too')
    parser.add_argument('--categories', help='JSON with COCO categories, where the run has none.')
    for name, kind in (
        ('object_mask_threshold', float),
        ('overlap_threshold', float),
        ('short_side', int),
        ('max_side', int),
        ('batch_size', int),
    ):
        parser.add_argument(f'--{name}', type=kind, help="Instead of the config's.")
    values, overrides = parser.parse_known_args(arguments)
    values = vars(values)
    checkpoint, images, out, config, categories = (
        values.pop(name) for name in ('checkpoint', 'images', 'out', 'config', 'categories')
    )
    foreign = [word for word in overrides if not (config and word.startswith('--config.'))]
    if foreign:
        parser.error(f'unexpected {foreign[0]!r}; is the pattern of --images in quotes?')
    logging.set_verbosity(logging.WARNING)
    configure_malloc()
    enable_compilation_cache()
    try:
        predictor = load(
            checkpoint,
            config=read_config(config, overrides) if config else None,
            categories=categories,
            **{name: value for name, value in values.items() if value is not None},
        )
        failed = predict_files(predictor, images, out)
    except (ValueError, OSError) as error:
        if not is_for_user(error):
            raise
        stop(error)
    print(f'{out}: {", ".join(KINDS)} and panoptic.json')
    if failed:
        lines = ''.join(f'\n  {reason}' for reason in failed.values())
        stop(f'{len(failed)} images could not be predicted:{lines}')


def _matching(images: str, out: Path) -> list[Path]:
    """The files of a pattern in order, without earlier results."""
    found = sorted(path for path in map(Path, glob.glob(images, recursive=True)) if path.is_file())
    results = [(out / kind).resolve() for kind in KINDS]
    found = [p for p in found if not any(r in p.resolve().parents for r in results)]
    if not found:
        raise ValueError(
            f"--images={images} fits no file; give a pattern in quotes, such as 'photos/*.jpg'."
        )
    return found


if __name__ == '__main__':
    main(sys.argv[1:])
