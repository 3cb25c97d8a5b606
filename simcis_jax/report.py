"""The command that writes a page about a run, finished or not.

    python -m simcis_jax.report --workdir=runs/a

The page is one file, DIR/report.html, that needs neither a network nor a script.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import jax
from absl import logging

from simcis_jax.main import is_for_user, stop
from simcis_jax.reporting.page import make_page
from simcis_jax.reporting.run_folder import read_run
from simcis_jax.training.workdir import write_atomically


def write_report(workdir: str | Path) -> Path:
    """Writes report.html into the folder of a run; returns its path.

    Raises:
        ValueError: the folder holds no run.
        OSError: something cannot be read or written.
    """
    page = make_page(read_run(workdir))
    path = Path(workdir) / 'report.html'
    write_atomically(path, page)
    return path


def main(arguments: list[str] | None = None) -> None:
    """Runs the command; bad input ends it with one line."""
    parser = argparse.ArgumentParser(prog='simcis_jax.report', allow_abbrev=False)
    parser.add_argument('--workdir', required=True, help='Folder of the run.')
    workdir = parser.parse_args(arguments).workdir
    logging.set_verbosity(logging.WARNING)
    jax.config.update('jax_platforms', 'cpu')  # The run may be using the accelerators right now.
    try:
        print(write_report(workdir))
    except (ValueError, OSError) as error:
        if not is_for_user(error):
            raise
        stop(error)


if __name__ == '__main__':
    main(sys.argv[1:])
