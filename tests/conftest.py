"""Fixtures and hooks shared by all tests."""

# ruff: noqa: E402

import os

from xla_flags import FAST_COMPILATION

os.environ.setdefault('XLA_FLAGS', FAST_COMPILATION)

import jax
import parity
import pytest
from absl import flags
from tiny import tiny_config

from simcis_jax import main
from simcis_jax.methods.simcis import SimCIS
from simcis_jax.runtime.compilation import shared


@pytest.fixture(scope='session', autouse=True)
def compilation_cache(tmp_path_factory):
    """Shares compiled programs between all tests and processes, as many compile the same step."""
    if jax.config.jax_compilation_cache_dir is None:  # Not set by JAX_COMPILATION_CACHE_DIR.
        base = tmp_path_factory.getbasetemp()
        shared = base.parent if 'PYTEST_XDIST_WORKER' in os.environ else base
        jax.config.update('jax_compilation_cache_dir', str(shared / 'compiled'))
    jax.config.update('jax_persistent_cache_min_compile_time_secs', 0.5)


@pytest.fixture(scope='session')
def finished(tmp_path_factory):
    """A finished run: (folder, results, number of traces of the step). Do not modify the folder."""
    workdir = tmp_path_factory.mktemp('runs') / 'finished'
    traces = []
    shared.cache_clear()  # So that it is traced here.
    with pytest.MonkeyPatch.context() as patch:
        stored_queries = SimCIS.stored_queries
        patch.setattr(
            SimCIS, 'stored_queries', lambda self, *a: traces.append(1) or stored_queries(self, *a)
        )
        results = main.run(tiny_config(), str(workdir))
    return workdir, results, len(traces)


def pytest_configure(config):
    if not flags.FLAGS.is_parsed():
        flags.FLAGS.mark_as_parsed()  # Grain reads absl flags, which pytest leaves unparsed.


def pytest_sessionfinish(session):
    """Each pytest-xdist worker sends its parity errors to the process that reports them."""
    if hasattr(session.config, 'workeroutput'):
        session.config.workeroutput['parity'] = parity.recorded()


@pytest.hookimpl(optionalhook=True)  # A hook of pytest-xdist.
def pytest_testnodedown(node):
    parity.add(getattr(node, 'workeroutput', {}).get('parity', []))


def pytest_terminal_summary(terminalreporter):
    """Prints the errors relative to the published code, if any test compared with it."""
    if parity.ERRORS:
        terminalreporter.section('relative errors against the published code')
        for line in parity.table():
            terminalreporter.write_line(line)
