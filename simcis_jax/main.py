"""The training command: trains and evaluates all stages of a config, and prints the table.

    python -m simcis_jax.main --config=shapes_cps_8_2 --workdir=runs/shapes

--config is the name of a config in the package or the path of your own. Any value can be changed on
the command line, as in --config.method.name=finetune. The same command resumes an interrupted run;
on a finished run it prints the table. --mode=evaluate evaluates the newest finished stage again,
for example the one in training.init_from.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping, Sequence
from typing import Any

import jax

from simcis_jax.runtime import command, devices, failures, interruption, parallel
from simcis_jax.runtime.object_store import check_local
from simcis_jax.settings import method_choice
from simcis_jax.settings.validated import from_config
from simcis_jax.training.optimizer import count_parameters
from simcis_jax.training.remote_workdir import local_folder
from simcis_jax.training.trainer import Trainer
from simcis_jax.training.workdir import Workdir

MODES = ('train', 'evaluate')


def run(config: Mapping[str, Any], workdir: str, mode: str = 'train') -> dict:
    """Runs a config and returns the results; the entry point for notebooks and tests.

    Args:
        config: config as `configs/common.py` makes it; or nested dicts, which must not change
            keys of methods that are not chosen.
        workdir: folder of the run, or its address in an object store.
        mode: 'train', or 'evaluate' to evaluate the newest finished stage again without training.

    Raises:
        InputError: a key or value is not allowed, or differs from the config in `workdir`.
        FileError: a file is missing or cannot be read or written.
        NonfiniteError: a loss or gradient is not finite.
        Interrupted: SIGTERM or Ctrl-C stopped the training; a subclass of SystemExit.
    """
    config = method_choice.as_dict(config)
    values = from_config(config)
    for name in ('init_from', 'init_backbone'):
        check_local(getattr(values.training, name), f'training.{name}')
    with (
        local_folder(workdir) as root,
        Workdir(root, config, writes=parallel.is_main()) as folder,
    ):
        if parallel.is_main():
            devices.print_devices(values.model['dtype'])
        trainer = Trainer(values, folder)
        if parallel.is_main():
            params, _ = jax.eval_shape(trainer.states.initialize)
            trainable, total = count_parameters(params, trainer.states.frozen[0])
            print(f'parameters: {trainable:,} trainable, {total:,} in total', flush=True)
        return trainer.evaluate() if mode == 'evaluate' else trainer.run()


def main(arguments: Sequence[str] | None = None) -> None:
    """Runs the command."""
    parser = command.make_parser('simcis_jax.main', 'Trains and evaluates the stages of a config.')
    parser.add_argument(
        '--config',
        type=command.path,
        required=True,
        help='Name of a config in the package, such as shapes_cps_8_2, or path of a config file.',
    )
    parser.add_argument(
        '--workdir',
        type=command.path_or_address,
        required=True,
        help='Folder of the run, or its address in an object store: gs:// or s3://.',
    )
    parser.add_argument(
        '--mode',
        choices=MODES,
        default='train',
        help='train: train and evaluate all unfinished stages. evaluate: evaluate the newest '
        'finished stage again.',
    )
    parser.add_argument(
        '--distributed',
        action='store_true',
        help='Run as one of several processes, on a cluster or with JAX_COORDINATOR_ADDRESS set.',
    )
    options, overrides = command.split_overrides(parser, arguments)

    def program() -> None:
        if options.distributed:
            parallel.start_processes()
            if not parallel.is_main():
                sys.stdout = open(os.devnull, 'w', encoding='utf-8')
        interruption.stop_at_once()
        with failures.end_together():
            config = command.read_config(options.config, overrides).to_dict()
            config = method_choice.resolve(config, command.changed_keys(overrides))
            run(config, options.workdir, options.mode)

    command.start(program)


if __name__ == '__main__':
    main()
