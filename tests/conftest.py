"""Fixtures and hooks shared by all tests."""

# ruff: noqa: E402

import dataclasses
import fcntl
import gc
import json
import os
import resource

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
from simcis_jax.training import trainer

MAX_RESIDENT = 2 << 30  # Bytes of a test process.


@pytest.fixture(scope='session')
def common_folder(tmp_path_factory):
    """A folder of all processes of this test run."""
    base = tmp_path_factory.getbasetemp()
    return base.parent if 'PYTEST_XDIST_WORKER' in os.environ else base


@pytest.fixture(scope='session', autouse=True)
def compilation_cache(common_folder):
    """Shares compiled programs between all tests and processes, as many compile the same step."""
    if jax.config.jax_compilation_cache_dir is None:  # Not set by JAX_COMPILATION_CACHE_DIR.
        jax.config.update('jax_compilation_cache_dir', str(common_folder / 'compiled'))
    jax.config.update('jax_persistent_cache_min_compile_time_secs', 0.5)


@pytest.fixture(scope='session')
def finished(common_folder):
    """A finished run: (folder, results, number of traces of the step). Do not modify the folder.

    The first process that needs it trains; the others wait and read what it wrote.
    """
    workdir, record = common_folder / 'finished', common_folder / 'finished.json'
    with (common_folder / 'finished.lock').open('w') as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not record.exists():
            record.write_text(json.dumps(train_tiny(workdir)))
    return workdir, *json.loads(record.read_text())


def train_tiny(workdir):
    """Trains the miniature run; returns its results and how often the step was traced.

    An array that is copied to the device without being asked is an error.
    """
    traces, run_steps = [], trainer.run_steps

    def without_transfers(steps, *arguments):
        def guarded(state, batch):
            with jax.transfer_guard('disallow'):  # All arrays of a step are on the device.
                return steps.update(state, batch)

        return run_steps(dataclasses.replace(steps, update=guarded), *arguments)

    shared.cache_clear()  # So that it is traced here.
    with pytest.MonkeyPatch.context() as patch:
        store = SimCIS.store
        patch.setattr(trainer, 'run_steps', without_transfers)
        patch.setattr(SimCIS, 'store', lambda self, step: traces.append(1) or store(self, step))
        results = main.run(tiny_config(), str(workdir))
    return results, len(traces)


def pytest_configure(config):
    if not flags.FLAGS.is_parsed():
        flags.FLAGS.mark_as_parsed()  # Grain reads absl flags, which pytest leaves unparsed.


def pytest_collection_modifyitems(items):
    """Puts tests of the finished run first, so that one process trains it and none waits for it."""
    items.sort(key=lambda item: 'finished' not in getattr(item, 'fixturenames', ()))


def pytest_collection_finish():
    """Looks for garbage less often: by default, this takes a quarter of the time of tracing."""
    gc.freeze()
    gc.set_threshold(100_000, 50, 100)


def pytest_runtest_teardown(item, nextitem):
    """Drops compiled programs between modules, so that a process stays below a few gigabytes."""
    if nextitem is None or nextitem.path == item.path:
        return
    with open('/proc/self/statm') as pages:
        resident = int(pages.read().split()[1]) * resource.getpagesize()
    if resident > MAX_RESIDENT:
        shared.cache_clear()
        jax.clear_caches()
        gc.collect()


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
