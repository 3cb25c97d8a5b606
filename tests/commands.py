"""Starts commands in separate processes."""

import os
import socket
import subprocess
import sys
from pathlib import Path

import jax
from xla_flags import FAST_COMPILATION

HERE = Path(__file__).parent
MAIN = ('-m', 'simcis_jax.main')
# Compiles as the tests do, with the same compilation cache.
ENVIRONMENT = {
    'JAX_PLATFORMS': 'cpu',
    'JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS': '0.5',
    'XLA_FLAGS': FAST_COMPILATION,
    'PYTHONPATH': f'{HERE.parent}:{HERE}',
}


def start(program, *arguments, environment=None, **options):
    """Starts `python PROGRAM`; options are those of Popen."""
    cache = jax.config.jax_compilation_cache_dir or os.environ['JAX_COMPILATION_CACHE_DIR']
    environment = {
        **os.environ,
        **ENVIRONMENT,
        'JAX_COMPILATION_CACHE_DIR': cache,
        **(environment or {}),
    }
    command = [sys.executable, *map(str, program), *map(str, arguments)]
    return subprocess.Popen(command, env=environment, cwd=HERE.parent, text=True, **options)


def start_run(workdir, *flags, program=MAIN, **options):
    """Starts the training command with the miniature config, tests/tiny.py."""
    return start(program, f'--config={HERE}/tiny.py', f'--workdir={workdir}', *flags, **options)


def cluster_environments(num_processes):
    """Environment variables by which the processes of one run find each other, per process."""
    with socket.socket() as probe:
        probe.bind(('127.0.0.1', 0))
        address = f'127.0.0.1:{probe.getsockname()[1]}'
    return [
        {
            'JAX_COORDINATOR_ADDRESS': address,
            'JAX_NUM_PROCESSES': str(num_processes),
            'JAX_PROCESS_ID': str(index),
        }
        for index in range(num_processes)
    ]
