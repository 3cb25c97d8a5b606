"""Shared by all tests."""

# ruff: noqa: E402

import os

# Tests wait for compilation far longer than for what was compiled.
os.environ.setdefault('XLA_FLAGS', '--xla_backend_optimization_level=0')

import jax
import parity
import pytest
from absl import flags
from tiny import tiny_config

from simcis_jax import main
from simcis_jax.methods.simcis import SimCIS


@pytest.fixture(scope='session', autouse=True)
def compilation_cache(tmp_path_factory):
    """Compiles each function once for all processes: the same step is built by many runs."""
    if jax.config.jax_compilation_cache_dir is None:  # JAX_COMPILATION_CACHE_DIR keeps one.
        base = tmp_path_factory.getbasetemp()
        shared = base.parent if 'PYTEST_XDIST_WORKER' in os.environ else base
        jax.config.update('jax_compilation_cache_dir', str(shared / 'compiled'))
    jax.config.update('jax_persistent_cache_min_compile_time_secs', 0.5)


@pytest.fixture(scope='session')
def finished(tmp_path_factory):
    """A finished run: folder, results, how often the step was traced. To change it, copy it."""
    workdir = tmp_path_factory.mktemp('runs') / 'finished'
    traces = []
    with pytest.MonkeyPatch.context() as patch:
        stored_queries = SimCIS.stored_queries
        patch.setattr(
            SimCIS, 'stored_queries', lambda self, *a: traces.append(1) or stored_queries(self, *a)
        )
        results = main.run(tiny_config(), str(workdir))
    return workdir, results, len(traces)


def pytest_configure(config):
    if not flags.FLAGS.is_parsed():
        flags.FLAGS.mark_as_parsed()  # Grain reads flags, and here no app parses them.


def pytest_sessionfinish(session):
    """A process that runs some of the tests sends what it compared to the one that reports."""
    if hasattr(session.config, 'workeroutput'):
        session.config.workeroutput['parity'] = parity.recorded()


@pytest.hookimpl(optionalhook=True)  # Of pytest-xdist.
def pytest_testnodedown(node):
    parity.add(getattr(node, 'workeroutput', {}).get('parity', []))


def pytest_terminal_summary(terminalreporter):
    """How well the arrays of the published code were met, if any were compared."""
    if parity.ERRORS:
        terminalreporter.section('relative errors against the published code')
        for line in parity.table():
            terminalreporter.write_line(line)
