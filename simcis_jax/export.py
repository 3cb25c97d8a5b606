"""The command that writes a trained model as one file that runs without this package.

    python -m simcis_jax.export --checkpoint=runs/a --platforms=cpu,cuda,tpu --out=model.stablehlo

The file is read with `jax.export.deserialize`; see `export_model` for what it takes and returns.
"""

from __future__ import annotations

from collections.abc import Sequence

from simcis_jax.prediction.exported_model import check_platforms, export_model
from simcis_jax.prediction.load_model import load_model
from simcis_jax.prediction.model_arguments import (
    THRESHOLDS,
    add_model_arguments,
    parse_arguments,
    with_config,
)
from simcis_jax.prediction.platform_programs import PLATFORMS
from simcis_jax.runtime import command, devices

__all__ = ['export_model', 'load_model']


def main(arguments: Sequence[str] | None = None) -> None:
    """Runs the command."""
    parser = command.make_parser('simcis_jax.export', 'Writes a model as one file of jax.export.')
    add_model_arguments(parser, THRESHOLDS)
    parser.add_argument('--out', type=command.path, required=True, help='File to write.')
    parser.add_argument(
        '--platforms',
        type=lambda text: text.split(','),
        help=f'Some of {",".join(PLATFORMS)}, on which the file can run; default: cpu,cuda,tpu.',
    )
    for name, words in (
        ('height', 'Height of its images in pixels, padding included.'),
        ('width', 'Width of its images in pixels, padding included.'),
        ('batch_size', 'Number of its images.'),
    ):
        parser.add_argument(f'--{name}', type=int, help=words)
    values, overrides = parse_arguments(parser, arguments)
    names = ('out', 'platforms', 'height', 'width', 'batch_size')
    chosen = {name: values.pop(name) for name in names if name in values}

    def program() -> None:
        check_platforms(chosen.get('platforms', ()))  # Before the model is loaded.
        settings = with_config(values['checkpoint'], values, overrides)
        devices.print_devices()
        print(export_model(load_model(**settings), **chosen))

    command.start(program)


if __name__ == '__main__':
    main()
