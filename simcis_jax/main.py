"""The command: config in, stages trained and evaluated, table out.

    python -m simcis_jax.main --config=shapes_cps_8_2 --workdir=runs/shapes

A config is one of the package by its name, or a file of your own by its path. Any value can be
changed on the command line: --config.method.name=finetune. The same command
continues an interrupted run; on a finished run it prints the table. --mode=evaluate scores the
newest finished stage again, for example the one of training.init_from.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping, Sequence
from typing import Any

import jax
from ml_collections import ConfigDict

from simcis_jax import settings
from simcis_jax.runtime import command, devices, interruption, parallel
from simcis_jax.training.optimizer import count_parameters
from simcis_jax.training.trainer import Trainer
from simcis_jax.training.workdir import Workdir

MODES = ('train', 'evaluate')


def run(config: Mapping[str, Any], workdir: str, mode: str = 'train') -> dict:
    """Runs a config to its results; the entry for notebooks and tests.

    Args:
        config: groups of values, as `configs/common.py` makes them.
        workdir: folder of the run.
        mode: 'train', or 'evaluate' to score the newest finished stage again and train nothing.

    Raises:
        InputError: a value is unknown, impossible, or not the one the folder was started with.
        FileError: a file is missing or cannot be read or written.
        NonfiniteError: a loss is not finite.
        Interrupted: SIGTERM or Ctrl-C came while training; a SystemExit.
    """
    config = config.to_dict() if isinstance(config, ConfigDict) else config
    with Workdir(workdir, config, writes=parallel.is_main()) as folder:
        values = settings.from_config(config)
        if parallel.is_main():
            devices.print_devices(values.model['dtype'])
        trainer = Trainer(values, folder)
        if parallel.is_main():
            trainable, total = count_parameters(jax.eval_shape(trainer.initialize)[0])
            print(f'parameters: {trainable:,} trainable, {total:,} in total', flush=True)
        return trainer.evaluate() if mode == 'evaluate' else trainer.run()


def main(arguments: Sequence[str] | None = None) -> None:
    """Runs the command."""
    parser = command.make_parser('simcis_jax.main', 'Trains and evaluates the stages of a config.')
    parser.add_argument(
        '--config',
        type=command.path,
        required=True,
        help='Name of a config of the package, such as shapes_cps_8_2, or path of a file.',
    )
    parser.add_argument('--workdir', type=command.path, required=True, help='Folder of the run.')
    parser.add_argument(
        '--mode',
        choices=MODES,
        default='train',
        help='train: what is not finished yet, then evaluate. evaluate: the newest finished stage.',
    )
    parser.add_argument(
        '--distributed',
        action='store_true',
        help='Run as one of several processes; see parallel.start_processes.',
    )
    options, overrides = command.split_overrides(parser, arguments)

    def program() -> None:
        if options.distributed:
            parallel.start_processes()
            if not parallel.is_main():
                sys.stdout = open(os.devnull, 'w', encoding='utf-8')
        interruption.stop_at_once()
        run(command.read_config(options.config, overrides), options.workdir, options.mode)

    command.start(program)


if __name__ == '__main__':
    main()
