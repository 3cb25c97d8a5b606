"""Checkpoints that are intact, damaged, unfinished or cannot be written."""

import resource
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from simcis_jax.continual import virtual_query
from simcis_jax.training import manifest
from simcis_jax.training.checkpointing import StageCheckpoints, discard_damaged
from simcis_jax.types import TrainState

PARAMS = {'layer': {'kernel': np.arange(4096, dtype=np.float32).reshape(64, 64)}}


@pytest.fixture(scope='module')
def written(tmp_path_factory):
    """Checkpoints of steps 2 and 4."""
    folder = tmp_path_factory.mktemp('written') / 'checkpoints'
    with StageCheckpoints(folder) as checkpoints:
        for step in (2, 4):
            checkpoints.save_weights(step, PARAMS, {'bank': jnp.full(300, step)})
    return folder


@pytest.fixture
def folder(written, tmp_path):
    """A copy of the folder `written`, which a test may damage."""
    return shutil.copytree(written, tmp_path / 'checkpoints')


def newest_bank(folder):
    with StageCheckpoints(folder) as checkpoints:
        return np.asarray(checkpoints.read('memory')['bank'])


def truncate(path):
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def flip(path):
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def files_of(step):
    return sorted(path for path in step.rglob('*') if path.is_file() and path.stat().st_size)


def test_every_part_of_a_train_state_is_restored(tmp_path):
    state = TrainState(
        step=jnp.int32(3),
        params={'kernel': jnp.arange(6.0).reshape(2, 3)},
        opt_state=({'mu': jnp.full(3, 0.5)}, jnp.int32(7)),
        memory=virtual_query.create(2, 3, 4).replace(written=jnp.array([5, 1])),
        key=jax.random.key(11),
        skipped=jnp.int32(2),
    )
    with StageCheckpoints(tmp_path / 'checkpoints') as checkpoints:
        checkpoints.save(3, state)
        checkpoints.wait()
        restored = checkpoints.restore(jax.tree.map(jnp.zeros_like, state))
    assert (restored.key == state.key).all()
    jax.tree.map(np.testing.assert_array_equal, restored.replace(key=None), state.replace(key=None))


def test_intact_checkpoints_are_kept(folder):
    assert discard_damaged(folder) == []
    assert (newest_bank(folder) == 4).all()


@pytest.mark.parametrize('change', [truncate, flip, lambda path: path.unlink()])
def test_a_damaged_checkpoint_is_removed_and_the_file_named(written, tmp_path, change):
    names = [path.relative_to(written) for path in files_of(written / '4')]
    names = [name for name in names if len(name.parts) > 2 or name.name == manifest.NAME]
    assert len(names) > 8
    for name in names:
        folder = shutil.copytree(written, tmp_path / 'checkpoints')
        change(folder / name)
        (message,) = discard_damaged(folder)
        assert str(folder / '4') in message
        assert name.name in message or name.name == manifest.NAME
        assert (newest_bank(folder) == 2).all()
        shutil.rmtree(folder)


@pytest.mark.parametrize('change', [truncate, flip, lambda path: path.unlink()])
def test_damage_to_files_without_arrays_is_harmless(folder, change):
    for path in (folder / '4').glob('*'):
        if path.is_file() and path.name != manifest.NAME:
            change(path)
    assert discard_damaged(folder) == []
    assert (newest_bank(folder) == 4).all()


def test_reading_a_damaged_checkpoint_is_an_error(folder):
    flip(files_of(folder / '4' / 'params')[-1])
    with pytest.raises(ValueError, match=r'4 is damaged: params/.* delete .*evaluation\.json'):
        newest_bank(folder)


def test_no_checkpoint_is_left_if_all_are_damaged(folder):
    for step in ('2', '4'):
        (folder / step / manifest.NAME).unlink()
    assert len(discard_damaged(folder)) == 2
    with StageCheckpoints(folder) as checkpoints:
        assert checkpoints.latest_step is None


def test_unfinished_checkpoints_are_removed(folder):
    (folder / '6.orbax-checkpoint-tmp-0' / 'params').mkdir(parents=True)
    assert discard_damaged(folder) == []
    assert sorted(path.name for path in folder.iterdir()) == ['2', '4']


def test_a_checkpoint_that_cannot_be_written_leaves_the_previous_ones(folder, caplog):
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    noise = np.random.default_rng(0).normal(size=(64, 1024)).astype(np.float32)
    with pytest.raises(
        OSError, match=r'checkpoints: .* step 6 could not .* needs up to 0 MiB, \d+'
    ):
        # Writing fails as on a full disk.
        resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 16, limits[1]))
        try:
            with StageCheckpoints(folder) as checkpoints:
                checkpoints.save_weights(6, {'layer': noise})
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert not caplog.records  # The error says it all.
    assert sorted(path.name for path in folder.iterdir()) == ['2', '4']
    assert (newest_bank(folder) == 4).all()


def test_a_checkpoint_older_than_the_newest_is_refused(folder):
    with pytest.raises(OSError, match=r'step 3 could not be written.*step 4 as the newest'):
        with StageCheckpoints(folder) as checkpoints:
            checkpoints.save_weights(3, {'layer': np.zeros(2)})
    assert sorted(path.name for path in folder.iterdir()) == ['2', '4']
