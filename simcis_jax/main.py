"""The command: config in, stages trained and evaluated, table out.

    python -m simcis_jax.main --config=configs/shapes_cps_8_2.py --workdir=runs/shapes

Any value can be changed on the command line: --config.method.name=finetune. The same command goes
on where an interrupted run stopped; on a finished run it prints the table.
"""

from __future__ import annotations

import sys
import traceback
from pathlib import Path

from absl import app, flags, logging
from ml_collections import config_flags

import simcis_jax
from simcis_jax import settings
from simcis_jax.trainer import Trainer
from simcis_jax.workdir import Workdir

CONFIG = config_flags.DEFINE_config_file('config', None, 'Config file.', lock_config=True)
WORKDIR = flags.DEFINE_string('workdir', None, 'Folder of the run.')
flags.mark_flags_as_required(['config', 'workdir'])


def is_for_user(error: BaseException) -> bool:
    """Whether our own code raised it: then its message says all, and a traceback would hide it."""
    package = Path(simcis_jax.__file__).parent
    frames = traceback.extract_tb(error.__traceback__)
    return bool(frames) and package in Path(frames[-1].filename).parents


def run(config, workdir: str) -> dict:
    """Runs a config to its results; the entry for notebooks and tests."""
    values = config.to_dict() if hasattr(config, 'to_dict') else config
    checked = settings.from_config(values)
    trainer = Trainer(checked, Workdir(workdir, values))
    return trainer.run()


def main(argv: list[str]) -> None:
    """Parses nothing itself: flags are parsed by absl."""
    if len(argv) > 1:
        raise app.UsageError(f'unexpected arguments: {argv[1:]}')
    logging.set_verbosity(logging.WARNING)  # Checkpointing reports every write at INFO.
    try:
        run(CONFIG.value, WORKDIR.value)
    except (ValueError, OSError, FloatingPointError) as error:
        if not is_for_user(error):
            raise
        print(f'error: {error}', file=sys.stderr)
        sys.exit(1)


if __name__ == '__main__':
    app.run(main)
