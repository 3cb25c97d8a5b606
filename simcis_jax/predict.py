"""The command that segments images with a finished stage.

    python -m simcis_jax.predict --checkpoint=runs/a --images photos --out=predicted

`runs/a` means its newest finished stage; `runs/a/stage_3` works, too. A folder of images is
searched recursively; single files and patterns such as 'photos/*.jpg' work, too.

In Python, `load` returns a predictor for arrays:

    predictor = simcis_jax.predict.load('runs/a/stage_3')
    result = predictor(image)
"""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from pathlib import Path

from simcis_jax.data.decode import read_image
from simcis_jax.errors import FileError, StorageError, UserError
from simcis_jax.prediction.find_images import find_images
from simcis_jax.prediction.model_arguments import (
    THRESHOLDS,
    add_model_arguments,
    parse_arguments,
    with_config,
)
from simcis_jax.prediction.prediction_folder import KINDS, PredictionFolder
from simcis_jax.prediction.predictor import Prediction, Predictor, PreparedImage, load
from simcis_jax.runtime import command, devices
from simcis_jax.runtime.progress import Progress
from simcis_jax.runtime.threads import map_ahead

__all__ = ['Prediction', 'Predictor', 'load', 'predict_files']


def predict_files(
    predictor: Predictor, images: str | Path | Sequence[str | Path], out: str | Path
) -> dict[Path, str]:
    """Segments image files; see `PredictionFolder` for what is written.

    Args:
        predictor: the result of `load`.
        images: one or several files, folders or patterns; see `find_images`.
        out: folder for the results.

    Returns:
        For every file that could not be read, or whose results could not be written, the reason.

    Raises:
        InputError: there is no image.
        FileError: a path does not exist, or nothing can be written to `out`.
    """
    paths = find_images([images] if isinstance(images, str | Path) else images, out)
    folder = PredictionFolder(out, predictor.categories, paths)
    progress = Progress('predicted', len(paths), 'images')
    failed: dict[Path, str] = {}

    def read(path: Path) -> PreparedImage | tuple[Path, Exception]:
        try:
            return predictor.prepare(path, read_image(path, upright=True))
        except UserError as error:
            return path, error

    def readable(items):
        for item in items:
            if isinstance(item, PreparedImage):
                yield item
            else:
                path, error = item
                failed[path] = str(error)
                progress.advance()

    def write(item: tuple[PreparedImage, Prediction]) -> None:
        image, prediction = item
        try:
            folder.add(image.key, image.image, prediction)
        except StorageError:
            raise
        except FileError as error:
            failed[image.key] = str(error)

    try:
        with (
            contextlib.closing(map_ahead(read, paths)) as items,
            contextlib.closing(map_ahead(write, predictor.predict(readable(items)))) as written,
        ):
            for _ in written:
                progress.advance()
    finally:
        folder.write_json()  # Also after an error, for the images that are done.
    return failed


def main(arguments: Sequence[str] | None = None) -> None:
    """Runs the command; images without a result are listed at the end."""
    parser = command.make_parser('simcis_jax.predict', 'Segments images.')
    add_model_arguments(parser, THRESHOLDS | dict.fromkeys(('short_side', 'max_side'), int))
    parser.add_argument(
        '--batch_size', type=int, help='Images computed at once; by default one for each device.'
    )
    parser.add_argument('--out', type=command.path, required=True, help='Folder for the results.')
    parser.add_argument(
        '--images',
        type=command.path,
        required=True,
        nargs='+',
        action='extend',
        help="Files, folders (searched recursively) or patterns such as 'photos/**/*.jpg'.",
    )
    values, overrides = parse_arguments(
        parser, arguments, hint='separate several files by spaces: --images FILE FILE; '
    )
    checkpoint, images, out = (values.pop(name) for name in ('checkpoint', 'images', 'out'))

    def program() -> None:
        settings = with_config(checkpoint, values, overrides)
        find_images(images, out)  # Reports a wrong path before loading the model.
        devices.print_devices()
        failed = predict_files(load(checkpoint, **settings), images, out)
        print(f'{out}: {", ".join(KINDS)} and panoptic.json')
        if failed:
            lines = ''.join(f'\n  {reason}' for _, reason in sorted(failed.items()))
            command.stop(f'no result for {len(failed)} of the images:{lines}')

    command.start(program)


if __name__ == '__main__':
    main()
