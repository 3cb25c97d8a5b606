"""A work directory in an object store, from which a run goes on wherever it was cut off."""

import json
import shutil
import time

import numpy as np
import pytest
import runs
from fake_store import fake_store  # noqa: F401
from tiny import tiny_config

from simcis_jax import main
from simcis_jax.errors import FileError, InputError
from simcis_jax.runtime import lease
from simcis_jax.runtime.object_store import Store
from simcis_jax.training import manifest, remote_workdir
from simcis_jax.training.checkpointing import StageCheckpoints, discard_damaged
from simcis_jax.training.metrics_log import read_metrics
from simcis_jax.training.remote_workdir import is_copied, local_folder
from simcis_jax.training.workdir import Workdir
from simcis_jax.types import Categories

URL = 'gs://bucket/run'
CATEGORIES = Categories(('sky',), (False,), ((0, 0, 0),), (1,))


class Killed(BaseException):
    """Ends a run at once; nothing it does reaches the store afterwards."""


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    """Leases that last a tenth of a second, and no waiting."""
    defaults = {'seconds': 0.1, 'settling': 0.0, 'on_loss': lambda: None}
    monkeypatch.setattr(lease.Lease.__init__, '__kwdefaults__', defaults)


def train(root, steps):
    """What a run does to its folder: it logs every step and saves every second one."""
    with Workdir(root, {}) as workdir:
        workdir.claim(CATEGORIES)
        folder = workdir.stage(1)
        discard_damaged(folder.checkpoints)
        with StageCheckpoints(folder.checkpoints) as checkpoints:
            first = checkpoints.latest_step or 0
            with workdir.metrics_log(1, first) as log:
                for step in range(first + 1, steps + 1):
                    log.write(step, {'total': float(step)})
                    if step % 2 == 0:
                        checkpoints.save_weights(step, {'w': np.full(3, step)})
                        checkpoints.wait()
            weights = checkpoints.read('params')['w']
        folder.write_report({'stage': 1})
    return weights


def new_machine(fake_store):  # noqa: F811
    """Forgets the copy on the local disk."""
    with local_folder(URL) as root:
        pass
    shutil.rmtree(root.parent)
    del fake_store.downloads[:]


def test_a_run_goes_on_on_another_machine(fake_store, capsys):  # noqa: F811
    with local_folder(URL) as root:
        train(root, 4)
    assert f'{URL}: working in a copy, {root}' in capsys.readouterr().out
    names = {name.removeprefix('bucket/run/') for name in fake_store.files}
    assert {'config.json', 'metrics.jsonl', 'stage_1/evaluation.json'} <= names
    assert {name.split('/')[2] for name in names if '/checkpoints/' in name} == {'2', '4'}
    assert not {'lock', lease.NAME} & names

    new_machine(fake_store)
    with local_folder(URL) as root:
        np.testing.assert_array_equal(train(root, 8), [8, 8, 8])
        assert [r['step'] for r in read_metrics(root / 'metrics.jsonl')] == list(range(1, 9))
    steps = {name.split('/')[4] for name in fake_store.files if '/checkpoints/' in name}
    assert steps == {'6', '8'}  # Those that were deleted in the copy are deleted in the store.


@pytest.mark.parametrize('uploads', [0, 5, 10, 15])
def test_a_run_that_is_killed_during_an_upload_goes_on(fake_store, monkeypatch, uploads):  # noqa: F811
    with local_folder(URL) as root:
        train(root, 4)
    names = []

    def kill(name):
        if lease.NAME in name:
            return
        names.append(name)
        if len(names) > uploads:
            raise Killed

    with monkeypatch.context() as patch:
        with pytest.raises(Killed), local_folder(URL) as root:
            train(root, 8)
            patch.setattr(fake_store, 'failing', staticmethod(kill))
    shutil.rmtree(root.parent)
    with local_folder(URL) as root:
        for checkpoint in (root / 'stage_1' / 'checkpoints').iterdir():
            if (checkpoint / manifest.NAME).exists():
                assert manifest.damage(checkpoint) is None
                logged = [r['step'] for r in read_metrics(root / 'metrics.jsonl')]
                assert max(logged) >= int(checkpoint.name)
        np.testing.assert_array_equal(train(root, 8), [8, 8, 8])
        assert [r['step'] for r in read_metrics(root / 'metrics.jsonl')] == list(range(1, 9))


def test_changes_are_uploaded_while_a_run_goes_on(fake_store, monkeypatch):  # noqa: F811
    monkeypatch.setattr(remote_workdir, 'EVERY', 0.01)
    with local_folder(URL) as root:
        (root / 'metrics.jsonl').write_text('{}')
        for _ in range(500):
            if 'bucket/run/metrics.jsonl' in fake_store.files:
                break
            time.sleep(0.01)
        assert 'bucket/run/metrics.jsonl' in fake_store.files


def test_what_could_not_be_uploaded_stays_on_the_disk(fake_store, monkeypatch):  # noqa: F811
    def fail(name):
        if lease.NAME not in name:
            raise ConnectionError('no route to host')

    monkeypatch.setattr(fake_store, 'failing', staticmethod(fail))
    with pytest.raises(FileError, match=r'metrics.jsonl cannot be written .* are in (.*) only'):
        with local_folder(URL) as root:
            (root / 'metrics.jsonl').write_text('{}')
    assert (root / 'metrics.jsonl').read_text() == '{}'


def test_a_folder_in_use_is_refused(fake_store):  # noqa: F811
    with local_folder(URL):
        with pytest.raises(FileError, match=f'{URL} is used by another process'):
            with local_folder(URL):
                pass


def test_several_processes_are_refused(fake_store, monkeypatch):  # noqa: F811
    monkeypatch.setattr('jax.process_count', lambda: 2)
    with pytest.raises(InputError, match='a run of several processes cannot work; give a folder'):
        with local_folder(URL):
            pass


def test_addresses_elsewhere_are_refused_at_once(fake_store, tmp_path):  # noqa: F811
    changes = {'training.init_from': 'gs://bucket/run/stage_1'}
    with pytest.raises(InputError, match='init_from=gs://bucket/run/stage_1 must be a path on a'):
        main.run(tiny_config(**changes), str(tmp_path / 'run'))
    changes = {'data.name': 'coco_panoptic', 'data.root': 's3://bucket/coco'}
    with pytest.raises(InputError, match='data.root=s3://bucket/coco must be .* a prepared data'):
        main.run(tiny_config(**changes), str(tmp_path / 'run'))


def test_parts_of_files_are_not_uploaded():
    assert is_copied('stage_1/checkpoints/2/params/manifest.ocdbt')
    assert not is_copied('stage_1/checkpoints/2.orbax-checkpoint-tmp-7/params/manifest.ocdbt')
    assert not is_copied('results.json.part') and not is_copied('lock')


@pytest.mark.slow
def test_a_run_in_a_store_ends_with_the_numbers_of_one_on_a_disk(
    fake_store,  # noqa: F811
    tmp_path,
    monkeypatch,
):
    def crash(_):
        raise Killed

    changes = {'protocol.base': 12, 'evaluation.tasks': ('semantic',)}
    config = tiny_config(**changes)
    expected = main.run(config, str(tmp_path / 'run'))
    with monkeypatch.context() as patch:
        patch.setattr(remote_workdir, 'EVERY', 0.05)
        runs.at_step(patch, 5, crash)
        with pytest.raises(Killed):
            main.run(config, URL)
    new_machine(fake_store)
    assert main.run(config, URL) == expected
    with local_folder(URL) as root:
        runs.assert_same(root, tmp_path / 'run', stage=1)
    table = json.loads(fake_store.files['bucket/run/results.json'][0])
    assert [report['stage'] for report in table['stages']] == [1]


def test_a_run_whose_folder_was_taken_over_uploads_nothing(fake_store, monkeypatch):  # noqa: F811
    monkeypatch.setitem(lease.Lease.__init__.__kwdefaults__, 'seconds', 60)  # Noticed at the end.
    other = json.dumps({'holder': 'process 9 on other', 'token': 'y'}).encode()
    with pytest.raises(FileError, match='gs://bucket/run was taken over by process 9 on other'):
        with local_folder(URL) as root:
            (root / 'metrics.jsonl').write_text('{}')
            Store(URL).write(lease.NAME, other)
    assert list(fake_store.files) == [f'bucket/run/{lease.NAME}']
