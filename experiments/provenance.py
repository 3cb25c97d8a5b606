"""Provenance of a run: commit, hardware, JAX version and hours, stored in provenance.json."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import jax

from simcis_jax.runtime.files import write_atomically


def commit() -> str:
    """The current commit, with + if tracked files are modified; 'unknown' outside a repository."""

    def git(*arguments: str) -> str:
        command = ['git', '-C', str(Path(__file__).parent), *arguments]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()

    try:
        changed = git('status', '--porcelain', '--untracked-files=no')
        return git('rev-parse', '--short=10', 'HEAD') + ('+' if changed else '')
    except (OSError, subprocess.CalledProcessError):
        return 'unknown'


def hardware() -> str:
    """The devices of this process, such as '8 x TPU v4' or '2 CPU cores'."""
    kind = jax.devices()[0].device_kind
    if jax.default_backend() == 'cpu':
        return f'{len(os.sched_getaffinity(0))} CPU cores'
    return f'{jax.device_count()} x {kind}'


@contextlib.contextmanager
def record_provenance(folder: Path) -> Iterator[None]:
    """Writes provenance.json when the block ends, also by an error; its hours are added up."""
    start, code = time.monotonic(), commit()
    try:
        yield
    finally:
        if (folder / 'config.json').is_file():
            hours = read(folder).get('hours', 0.0) + (time.monotonic() - start) / 3600
            record = {
                'commit': code,
                'hardware': hardware(),
                'jax': jax.__version__,
                'hours': round(hours, 4),
            }
            write_atomically(folder / 'provenance.json', json.dumps(record, indent=2))


def read(folder: Path) -> dict:
    """The provenance of a run; empty if none was recorded."""
    path = folder / 'provenance.json'
    return json.loads(path.read_text('utf-8')) if path.is_file() else {}


def first_stage_source(folder: Path) -> str:
    """Name of the run that trained the first stage; '-' if the run trained it itself."""
    path = folder / 'config.json'
    source = json.loads(path.read_text('utf-8'))['training']['init_from'] if path.is_file() else ''
    return Path(source).parent.name if source else '-'
