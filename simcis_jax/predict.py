"""The command that segments a user's own images.

    python -m simcis_jax.predict --checkpoint=runs/a/stage_3 --images='photos/*.jpg' --out=predicted

In Python, `load` gives the same as a function of arrays:

    predictor = simcis_jax.predict.load('runs/a/stage_3')
    result = predictor(image)
"""

from __future__ import annotations

import glob
from collections.abc import Sequence
from pathlib import Path

from simcis_jax.data.decode import read_image
from simcis_jax.errors import InputError, UserError
from simcis_jax.prediction.prediction_folder import KINDS, PredictionFolder
from simcis_jax.prediction.predictor import Prediction, Predictor, PreparedImage, load
from simcis_jax.runtime import command
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
        InputError: no file fits the pattern.
        FileError: results cannot be written.
    """
    paths = _matching(images, Path(out))
    folder = PredictionFolder(out, predictor.categories, paths)
    progress = Progress('predicted', len(paths), 'images')
    failed = {}

    def read(path: Path) -> PreparedImage | tuple[Path, Exception]:
        try:
            return predictor.prepare(path, read_image(path, upright=True))
        except UserError as error:
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


def main(arguments: Sequence[str] | None = None) -> None:
    """Runs the command; images that cannot be read are listed at the end."""
    parser = command.make_parser('simcis_jax.predict', 'Segments images.')
    for name, required, words in (
        ('checkpoint', True, 'Folder stage_N of a run.'),
        ('images', True, "Pattern in quotes: 'photos/**/*.jpg'."),
        ('out', True, 'Folder for the results.'),
        ('config', False, 'Config file, where the run has none; its values can be set, too.'),
        ('categories', False, 'JSON with COCO categories, where the run has none.'),
    ):
        parser.add_argument(f'--{name}', type=command.path, required=required, help=words)
    for name, kind in (
        ('object_mask_threshold', float),
        ('overlap_threshold', float),
        ('short_side', int),
        ('max_side', int),
        ('batch_size', int),
    ):
        parser.add_argument(f'--{name}', type=kind, help="Instead of the config's.")
    options, overrides = command.split_overrides(parser, arguments)
    if overrides and not options.config:
        parser.error(f'{overrides[0]} changes a config, so it needs --config=FILE')
    values = {name: value for name, value in vars(options).items() if value is not None}
    checkpoint, images, out = (values.pop(name) for name in ('checkpoint', 'images', 'out'))

    def program() -> None:
        if options.config:
            values['config'] = command.read_config(options.config, overrides).to_dict()
        predictor = load(checkpoint, **values)
        failed = predict_files(predictor, images, out)
        print(f'{out}: {", ".join(KINDS)} and panoptic.json')
        if failed:
            lines = ''.join(f'\n  {reason}' for reason in failed.values())
            command.stop(f'{len(failed)} images could not be predicted:{lines}')

    command.start(program)


def _matching(images: str, out: Path) -> list[Path]:
    """The files of a pattern in order, without earlier results."""
    found = sorted(path for path in map(Path, glob.glob(images, recursive=True)) if path.is_file())
    results = [(out / kind).resolve() for kind in KINDS]
    found = [p for p in found if not any(r in p.resolve().parents for r in results)]
    if not found:
        raise InputError(
            f"--images={images} fits no file; give a pattern in quotes, such as 'photos/*.jpg'."
        )
    return found


if __name__ == '__main__':
    main()
