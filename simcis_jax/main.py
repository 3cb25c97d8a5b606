"""The command: config in, stages trained and evaluated, table out.

    python -m simcis_jax.main --config=configs/shapes_cps_8_2.py --workdir=runs/shapes

Any value can be changed on the command line: --config.method.name=finetune. The same command goes
on where an interrupted run stopped; on a finished run it prints the table. --mode=evaluate scores
the newest finished stage again, such as the one of training.init_from.
"""

from __future__ import annotations

import os
import sys
import traceback
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NoReturn

from absl import app, flags, logging
from ml_collections import ConfigDict, config_flags

import simcis_jax
from simcis_jax import settings
from simcis_jax.runtime import interruption, parallel
from simcis_jax.runtime.allocator import configure_malloc
from simcis_jax.runtime.compilation import enable_compilation_cache
from simcis_jax.training.trainer import Trainer
from simcis_jax.training.workdir import Workdir

CONFIG = config_flags.DEFINE_config_file('config', None, 'Config file.', lock_config=True)
MODE = flags.DEFINE_enum(
    'mode',
    'train',
    ['train', 'evaluate'],
    'train: what is not finished yet, then evaluate. evaluate: the newest finished stage only.',
)
WORKDIR = flags.DEFINE_string('workdir', None, 'Folder of the run.')
DISTRIBUTED = flags.DEFINE_bool(
    'distributed', False, 'Run as one of several processes; see parallel.start_processes.'
)
flags.mark_flags_as_required(['config', 'workdir'])


def is_for_user(error: BaseException) -> bool:
    """Whether our own code raised it: then its message says all, and a traceback would hide it."""
    package = Path(simcis_jax.__file__).parent
    frames = traceback.extract_tb(error.__traceback__)
    return bool(frames) and package in Path(frames[-1].filename).parents


def stop(message: object) -> NoReturn:
    """Ends the program with one line."""
    print(f'error: {message}', file=sys.stderr)
    sys.exit(1)


def run(config: Mapping[str, Any], workdir: str, mode: str = 'train') -> dict:
    """Runs a config to its results; the entry for notebooks and tests.

    Args:
        config: groups of values, as `configs/common.py` makes them.
        workdir: folder of the run.
        mode: 'train', or 'evaluate' to score the newest finished stage again and train nothing.

    Raises:
        ValueError: a value is unknown, impossible, or not the one the folder was started with.
        OSError: a file is missing or cannot be read or written.
        FloatingPointError: a loss is not finite.
        Interrupted: SIGTERM or Ctrl-C came while training; a SystemExit.
    """
    config = config.to_dict() if isinstance(config, ConfigDict) else config
    with Workdir(workdir, config, writes=parallel.is_main()) as folder:
        trainer = Trainer(settings.from_config(config), folder)
        return trainer.evaluate() if mode == 'evaluate' else trainer.run()


def parse_flags(argv: list[str], values: flags.FlagValues = flags.FLAGS) -> list[str]:
    """Parses the command line; a config that is missing or has no such key ends the program."""
    try:
        rest = values(argv)
    except AttributeError as error:  # An override of a key that the config does not have.
        cause = error.args[0]  # The config's own error, whose text has the nearest key.
        stop('unknown config key ' + ' '.join(str(*getattr(cause, 'args', [cause])).split()))
    except flags.Error as error:
        stop(error)
    path = values['config'].config_filename
    if not Path(path).is_file():
        stop(f'the config {path} does not exist; see configs/ for those that do.')
    return rest


def main(argv: list[str]) -> None:
    """Runs what the flags say."""
    if len(argv) > 1:
        stop(f'unexpected arguments {argv[1:]}; values are set with --config.GROUP.KEY=VALUE.')
    logging.set_verbosity(logging.WARNING)  # Checkpointing reports every write at INFO.
    try:
        if DISTRIBUTED.value:
            parallel.start_processes()
            if not parallel.is_main():
                sys.stdout = open(os.devnull, 'w')
        configure_malloc()
        enable_compilation_cache()
        interruption.stop_at_once()
        run(CONFIG.value, WORKDIR.value, MODE.value)
    except (ValueError, OSError, FloatingPointError) as error:
        if not is_for_user(error):
            raise
        stop(error)


if __name__ == '__main__':
    app.run(main, flags_parser=parse_flags)
