"""Work directories record the config and the classes of their run."""

import dataclasses
import errno
import fcntl
import functools
import json

import pytest
from tiny import tiny_config

from simcis_jax.data.category_list import read_categories
from simcis_jax.errors import FileError
from simcis_jax.runtime import lease
from simcis_jax.training.workdir import Workdir
from simcis_jax.types import Categories

LEARNED = Categories(
    names=('sky', 'grass', 'ball'),
    is_thing=(False, False, True),
    colors=((1, 2, 3),) * 3,
    ids=(3, 5, 9),
)


def claim(folder, categories, config=None):
    with Workdir(folder, config or {}) as workdir:
        workdir.claim(categories)


def changed(**columns):
    return dataclasses.replace(LEARNED, **columns)


def test_a_run_that_is_older_than_a_config_key_can_be_resumed(tmp_path):
    config, path = tiny_config().to_dict(), tmp_path / 'config.json'
    claim(tmp_path, LEARNED, config)
    recorded = json.loads(path.read_text())
    del recorded['data']['hold_out'], recorded['training']['stop_gradient_from_stage']
    path.write_text(json.dumps(recorded))
    with pytest.raises(ValueError, match='stop_gradient_from_stage is 1 there and 2 now'):
        claim(tmp_path, LEARNED, config)
    config['training']['stop_gradient_from_stage'] = 1  # The default, as before the key.
    claim(tmp_path, LEARNED, config)
    assert json.loads(path.read_text())['data']['hold_out'] == 0


@pytest.mark.parametrize(
    ('now', 'words'),
    [
        (
            changed(names=('sky', 'lawn', 'ball')),
            r"category 5 is 'grass' \(stuff\) in .*json and 'lawn' \(stuff\) in the data set now",
        ),
        (
            changed(is_thing=(False, True, True)),
            r"category 5 is 'grass' \(stuff\) in .*json and 'grass' \(a thing\) in the data set",
        ),
        (
            changed(ids=(3, 6, 9)),
            r"category 5 is 'grass' \(stuff\) in .*json and missing in the data set now",
        ),
        (
            Categories(
                (*LEARNED.names, 'sea'), (*LEARNED.is_thing, False), ((0, 0, 0),) * 4, (3, 5, 9, 7)
            ),
            r"category 7 is 'sea' \(stuff\) in the data set now and missing in .*json",
        ),
    ],
)
def test_other_classes_are_refused_and_change_no_file(tmp_path, now, words):
    claim(tmp_path, LEARNED, {'data': {'root': 'here'}})
    before = {path.name: path.read_text() for path in tmp_path.glob('*.json')}
    with pytest.raises(ValueError, match=f'holds a run with other classes: {words}.*restore the'):
        claim(tmp_path, now, {'data': {'root': 'elsewhere'}})
    assert {path.name: path.read_text() for path in tmp_path.glob('*.json')} == before


def test_a_run_with_the_same_classes_resumes_and_may_change_their_colours(tmp_path):
    claim(tmp_path, LEARNED, {'data': {'root': 'a'}})
    now = changed(colors=((7, 8, 9),) * 3)
    claim(tmp_path, now, {'data': {'root': 'b'}})
    assert read_categories(tmp_path / 'categories.json') == now
    assert json.loads((tmp_path / 'config.json').read_text()) == {'data': {'root': 'b'}}


def test_a_run_that_was_killed_before_writing_its_classes_resumes(tmp_path):
    claim(tmp_path, LEARNED)
    (tmp_path / 'categories.json').unlink()
    claim(tmp_path, changed(names=('sky', 'lawn', 'ball')))
    assert read_categories(tmp_path / 'categories.json').names[1] == 'lawn'


def test_a_run_that_was_killed_while_it_wrote_its_config_is_continued(tmp_path):
    for name in ('lock', 'config.json.part', 'config.json.12.part'):
        (tmp_path / name).write_text('{"data"')
    claim(tmp_path, LEARNED)
    assert json.loads((tmp_path / 'config.json').read_text()) == {}


def test_a_file_system_without_locks_gets_a_lease(tmp_path, monkeypatch):
    def refuse(*_):
        raise OSError(errno.ENOSYS, 'Function not implemented')

    monkeypatch.setattr(fcntl, 'flock', refuse)
    monkeypatch.setattr(lease, 'Lease', functools.partial(lease.Lease, seconds=1.2, settling=0.05))
    with Workdir(tmp_path, {}) as workdir:
        workdir.claim(LEARNED)
        with pytest.raises(FileError, match=f'{tmp_path} is used by another process'):
            claim(tmp_path, LEARNED)
        assert (tmp_path / lease.NAME).exists()
    assert not (tmp_path / lease.NAME).exists()
    claim(tmp_path, LEARNED)
