"""The command that writes an HTML report of a run, finished or not.

    python -m simcis_jax.report --workdir=runs/a

The report is a single file, WORKDIR/report.html, without scripts or external resources.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import jax

from simcis_jax.reporting.page import make_page
from simcis_jax.reporting.run_folder import read_run
from simcis_jax.runtime import command
from simcis_jax.runtime.files import write_atomically


def write_report(workdir: str | Path) -> Path:
    """Writes report.html into the folder of a run; returns its path.

    Raises:
        InputError: the folder is not a work directory of a run.
        FileError: a file cannot be read or written.
    """
    page = make_page(read_run(workdir))
    path = Path(workdir) / 'report.html'
    write_atomically(path, page)
    return path


def main(arguments: Sequence[str] | None = None) -> None:
    """Runs the command."""
    parser = command.make_parser('simcis_jax.report', 'Writes an HTML report of a run.')
    parser.add_argument('--workdir', type=command.path, required=True, help='Folder of the run.')
    workdir = parser.parse_args(arguments).workdir
    jax.config.update('jax_platforms', 'cpu')  # The run may be using the accelerators.
    command.start(lambda: print(write_report(workdir)), uses_devices=False)


if __name__ == '__main__':
    main()
