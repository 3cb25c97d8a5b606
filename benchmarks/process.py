"""Measures a row in a subprocess, and describes the machine."""

from __future__ import annotations

import dataclasses
import json
import os
import platform
import re
import subprocess
import sys
from pathlib import Path

from benchmarks.row import OURS, Measurement, Settings

ROOT = Path(__file__).parent.parent


def measure(row: str, side: str, settings: Settings, peer_python: str = '') -> Measurement:
    """Measures a row in a subprocess.

    Raises:
        OSError: the subprocess failed; its stderr was printed.
    """
    python, module = sys.executable, 'our_side'
    if side != OURS:
        python, module = peer_python, 'torch_peer'
    command = [python, '-m', f'benchmarks.{module}', row, side]
    result = subprocess.run(
        [*command, json.dumps(dataclasses.asdict(settings))],
        stdout=subprocess.PIPE,
        text=True,
        cwd=ROOT,
        # The first call must include compilation.
        env=os.environ | {'TORCHINDUCTOR_FORCE_DISABLE_CACHES': '1'},
    )
    if result.returncode:
        raise OSError(f'{row!r} of {side} ended with status {result.returncode}; see above.')
    return Measurement(**json.loads(result.stdout.splitlines()[-1]))


def machine() -> str:
    """Name of the processor and number of usable cores."""
    cpuinfo = Path('/proc/cpuinfo')
    model = re.search(r'model name\s*: (.*)', cpuinfo.read_text()) if cpuinfo.exists() else None
    cores = len(os.sched_getaffinity(0))
    return f'{model[1] if model else platform.processor()}, {cores} cores'
