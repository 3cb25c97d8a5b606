"""The command-line arguments that name a model and change its settings."""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from typing import Any

from simcis_jax.errors import InputError
from simcis_jax.port.pretrained import is_pretrained
from simcis_jax.runtime import command
from simcis_jax.settings.method_choice import resolve

# Keys of the config group `evaluation` that decide which segments are shown.
THRESHOLDS = dict.fromkeys(
    ('object_mask_threshold', 'overlap_threshold', 'duplicate_overlap'), float
)


def add_model_arguments(parser: argparse.ArgumentParser, evaluation: Mapping[str, type]) -> None:
    """Adds the arguments of `load` to a parser.

    Args:
        parser: of the command.
        evaluation: keys of the config group `evaluation` that are arguments too, with their types.
    """
    for name, required, words in (
        (
            'checkpoint',
            True,
            'Folder stage_N, work directory of a run (its newest finished stage), or a pretrained '
            'Mask2Former: folder of transformers, or file of detectron2.',
        ),
        (
            'config',
            False,
            'Config name or file, for a model without a run; --config.GROUP.KEY=VALUE works, too.',
        ),
        ('categories', False, 'JSON with COCO categories, for a model without a run.'),
    ):
        parser.add_argument(f'--{name}', type=command.path, required=required, help=words)
    for name, kind in evaluation.items():
        parser.add_argument(
            f'--{name}', type=kind, help=f'Replaces evaluation.{name} of the config.'
        )


def parse_arguments(
    parser: argparse.ArgumentParser, arguments: Sequence[str] | None, *, hint: str = ''
) -> tuple[dict[str, Any], list[str]]:
    """Parses the command line; `hint` is that of `command.split_overrides`.

    Returns:
        The arguments that were given or have a default, by name, and the list of
        `--config.GROUP.KEY=VALUE`.
    """
    options, overrides = command.split_overrides(parser, arguments, hint=hint)
    if overrides and not options.config:
        parser.error(f'{overrides[0]} changes a config, so it needs --config=NAME')
    return {name: x for name, x in vars(options).items() if x is not None}, overrides


def with_config(
    checkpoint: str, values: Mapping[str, Any], overrides: Sequence[str]
) -> dict[str, Any]:
    """The arguments with the content of `config`, if one is named, instead of its name.

    Args:
        checkpoint: the model; a pretrained one has settings of its own, except for `evaluation`.
        values: the arguments by name.
        overrides: arguments '--config.GROUP.KEY=VALUE'.

    Raises:
        MissingFileError: there is no such config.
        InputError: it is not a config, or a changed key or value is not allowed.
    """
    if 'config' not in values:
        return dict(values)
    changed = command.changed_keys(overrides)
    others = [key for key in changed if not key.startswith('evaluation.')]
    if others and is_pretrained(checkpoint):
        raise InputError(
            f'{others[0]} cannot be changed: {checkpoint} is a pretrained model with settings of '
            'its own; change those of evaluation only.'
        )
    config = command.read_config(values['config'], overrides).to_dict()
    return dict(values, config=resolve(config, changed))
