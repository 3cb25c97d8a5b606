"""The same run on any number of devices and processes."""

import json
import re
import shutil

import commands
import numpy as np
import pytest
from commands import HERE


def start(num_devices, folder, *changes, **options):
    program = [HERE / 'devices.py', num_devices, folder / 'state.npz', folder / 'run']
    return commands.start(program, *changes, **options)


def trained(num_devices, folder, *changes):
    assert start(num_devices, folder, *changes).wait() == 0
    return folder


def losses(run):
    records = map(json.loads, (run / 'metrics.jsonl').read_text().splitlines())
    return [{k: v for k, v in record.items() if k != 'steps_per_second'} for record in records]


def assert_losses_close(run, other):
    for record, expected in zip(losses(run), losses(other), strict=True):
        assert record == pytest.approx(expected, rel=1e-5, abs=1e-5)


def assert_state_close(folder, other):
    """To 1e-5 of an array's largest value, or 1 % of what one step of AdamW may change.

    The keys' biases need the latter: attention does not depend on them, so their gradient is
    rounding alone, of which AdamW makes updates of full size.
    """
    state, expected = np.load(folder / 'state.npz'), np.load(other / 'state.npz')
    assert set(state.files) == set(expected.files)
    for name in set(state.files) - {'program'}:
        atol = max(1e-5 * np.abs(expected[name]).max(), 0.01 * 1e-3)
        np.testing.assert_allclose(state[name], expected[name], rtol=0, atol=atol, err_msg=name)


def collectives(program):
    """The collective operations of a compiled program: name of their computation, their kind."""
    kinds = 'all-reduce|all-gather|all-to-all|collective-permute|reduce-scatter'
    found, computation = [], ''
    for line in program.splitlines():
        if line.endswith('{') and not line.startswith(' '):
            computation = line.removeprefix('ENTRY ').split()[0]
        found += [(computation, kind) for kind in re.findall(rf' ({kinds})(?:-start)?\(', line)]
    return found


@pytest.fixture(scope='module')
def two_devices(tmp_path_factory):
    """Two stages trained on two devices; everything else as in `finished`."""
    return trained(2, tmp_path_factory.mktemp('two_devices'))


def test_two_devices_train_as_one_does(two_devices, finished):
    records = losses(finished[0])
    assert [r['step'] for r in records] == [2, 4, 6, 2, 4, 2, 4]
    for record, expected in zip(losses(two_devices / 'run'), records[:5], strict=True):
        assert record == pytest.approx(expected, rel=1e-5, abs=1e-5)


def test_the_step_communicates_four_times_and_never_in_a_loop(two_devices):
    program = str(np.load(two_devices / 'state.npz')['program'])
    assert ' while(' in program  # The assignment solver.
    entry = re.search(r'^ENTRY (\S+)', program, re.MULTILINE)[1]
    # The number of targets; gradients and metrics together; stored queries and their labels.
    expected = ['all-gather', 'all-gather', 'all-reduce', 'all-reduce']
    assert sorted(collectives(program)) == [(entry, kind) for kind in expected]


STEPS = ('training.batch_size=8', 'training.base_steps=20', 'training.steps_per_class=10')


@pytest.fixture(scope='module')
def one_device(tmp_path_factory):
    """20 steps of two stages each, on one device."""
    return trained(1, tmp_path_factory.mktemp('one_device'), *STEPS)


@pytest.mark.slow
@pytest.mark.parametrize('num_devices', [2, 4, 8])
def test_any_number_of_devices_trains_as_one_does(one_device, tmp_path, num_devices):
    folder = trained(num_devices, tmp_path, *STEPS)
    assert_losses_close(folder / 'run', one_device / 'run')
    assert_state_close(folder, one_device)


@pytest.mark.slow
def test_two_processes_train_as_one_does(one_device, tmp_path):
    processes = [
        start(2, tmp_path, *STEPS, environment=environment)
        for environment in commands.found_by_environment(2)
    ]
    assert [process.wait() for process in processes] == [0, 0]
    assert_losses_close(tmp_path / 'run', one_device / 'run')
    assert_state_close(tmp_path, one_device)


@pytest.mark.slow
def test_a_run_goes_on_on_another_number_of_devices(one_device, tmp_path):
    shutil.copytree(one_device / 'run', tmp_path / 'run')
    checkpoints = tmp_path / 'run' / 'stage_2' / 'checkpoints'
    shutil.rmtree(checkpoints / '20')
    assert [path.name for path in checkpoints.iterdir()] == ['18']
    folder = trained(4, tmp_path, *STEPS, 'training.images_at_once=1')
    assert_losses_close(folder / 'run', one_device / 'run')
    assert_state_close(folder, one_device)
