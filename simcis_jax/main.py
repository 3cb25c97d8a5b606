"""The command: config in, stages trained and evaluated, table out.

    python -m simcis_jax.main --config=configs/shapes_cps_8_2.py --workdir=runs/shapes

Any value can be changed on the command line: --config.method.name=finetune. The same command
continues an interrupted run; on a finished run it prints the table. --mode=evaluate scores the
newest finished stage again, for example the one of training.init_from.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping, Sequence
from typing import Any

from ml_collections import ConfigDict

from simcis_jax import settings
from simcis_jax.runtime import command, interruption, parallel
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
        trainer = Trainer(settings.from_config(config), folder)
        return trainer.evaluate() if mode == 'evaluate' else trainer.run()


def main(arguments: Sequence[str] | None = None) -> None:
    """Runs the command."""
    parser = command.make_parser('simcis_jax.main', 'Trains and evaluates the stages of a config.')
    parser.add_argument('--config', type=command.path, required=True, help='Config file.')
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
                sys.stdout = open(os.devnull, 'w')
        interruption.stop_at_once()
        run(command.read_config(options.config, overrides), options.workdir, options.mode)

    command.start(program)


if __name__ == '__main__':
    main()
