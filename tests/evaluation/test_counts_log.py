"""An evaluation that is interrupted and started again, against one that is not."""

import shutil

import evaluated
import numpy as np
import pytest
from evaluated import SIZES, Rectangles
from fake_store import fake_store  # noqa: F401

from simcis_jax.data.part import spread
from simcis_jax.evaluation import counts_log
from simcis_jax.evaluation.counts_log import CountsLog
from simcis_jax.evaluation.tasks import PanopticTask
from simcis_jax.runtime.object_store import FolderCopy

TASKS = ('panoptic', 'semantic', 'instance')


class Killed(Exception):
    pass


@pytest.fixture(scope='module')
def undisturbed():
    return evaluated.evaluate(tasks=TASKS)


@pytest.fixture
def counted(monkeypatch):
    """The images that are counted, in order; the evaluation is killed before the `at`-th."""
    images, kill = [], {'at': None}
    count = PanopticTask.count

    def spy(self, result, example, seen):
        if len(images) == kill['at']:
            raise Killed
        images.append(example.image_id)
        return count(self, result, example, seen)

    monkeypatch.setattr(PanopticTask, 'count', spy)
    monkeypatch.setattr(  # In order, no threads.
        'simcis_jax.evaluation.evaluator.map_ahead', lambda f, items: (f(item) for item in items)
    )
    return images, kill


@pytest.fixture
def a_file_per_image(monkeypatch):
    monkeypatch.setattr(counts_log, 'SECONDS', 0.0)


@pytest.mark.parametrize('at', [0, 4])
def test_an_interrupted_evaluation_goes_on_with_equal_results(undisturbed, counted, tmp_path, at):
    images, kill = counted
    kill['at'] = at
    options = {'counts_folder': tmp_path}
    with pytest.raises(Killed):
        evaluated.evaluate(tasks=TASKS, options=options)
    before, kill['at'] = list(images), None
    report, picture = evaluated.evaluate(tasks=TASKS, options=options)
    assert len(before) == at and len(images) == len(set(images)) == len(SIZES)
    assert report == undisturbed[0]
    np.testing.assert_array_equal(picture, undisturbed[1])


def test_counts_of_other_settings_are_not_used(counted, tmp_path):
    images, _ = counted
    options = {'counts_folder': tmp_path, 'num_images': 2}
    for expected, tasks in ((2, TASKS), (4, TASKS[:1]), (4, TASKS[:1])):
        evaluated.evaluate(tasks=tasks, options=options)
        assert len(images) == expected


def test_a_killed_process_loses_the_images_since_the_last_file(
    undisturbed, counted, tmp_path, monkeypatch
):
    images, kill = counted
    kill['at'] = 4
    options = {'counts_folder': tmp_path}
    with monkeypatch.context() as patch, pytest.raises(Killed):
        patch.setattr(CountsLog, 'close', lambda self: None)
        evaluated.evaluate(tasks=TASKS, options=options)
    kill['at'] = None
    assert evaluated.evaluate(tasks=TASKS, options=options)[0] == undisturbed[0]
    assert len(images) == 4 + len(SIZES)


def files(folder):
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


@pytest.mark.usefixtures('a_file_per_image')
@pytest.mark.parametrize('damage', [b'', b'[]', b'{"evaluated": \n[0, [1]]\n', None])
def test_a_damaged_file_costs_only_its_images(undisturbed, counted, tmp_path, damage):
    images, kill = counted
    options = {'counts_folder': tmp_path}
    kill['at'] = 5
    with pytest.raises(Killed):
        evaluated.evaluate(tasks=TASKS, options=options)
    before, damaged = files(tmp_path / 'process_0'), tmp_path / 'process_0' / '000002.json'
    assert len(before) == 5
    damaged.write_bytes(before[damaged.name].replace(b'1', b'2') if damage is None else damage)
    kill['at'] = None
    report, picture = evaluated.evaluate(tasks=TASKS, options=options)
    assert report == undisturbed[0]
    np.testing.assert_array_equal(picture, undisturbed[1])
    assert images[5:] == [images[2], *images[6:]] and len(images) == len(SIZES) + 1
    after = files(tmp_path / 'process_0')
    del before[damaged.name]
    assert damaged.name not in after and before.items() <= after.items()
    assert evaluated.evaluate(tasks=TASKS, options=options)[0] == report
    assert len(images) == len(SIZES) + 1


@pytest.mark.usefixtures('a_file_per_image')
def test_counts_of_another_model_are_not_used(tmp_path):
    task = PanopticTask(evaluated.CATEGORIES, 0.3, 0.6)
    log = CountsLog([task], tmp_path, {'params': 1})
    log.add([task.zeros()])
    assert CountsLog([task], tmp_path, {'params': 1}).found == {0}
    assert CountsLog([task], tmp_path, {'params': 2}).found == set()
    assert files(tmp_path) == {}


def test_a_file_is_written_for_the_first_image_and_when_there_is_enough(tmp_path, monkeypatch):
    task = PanopticTask(evaluated.CATEGORIES, 0.3, 0.6)
    monkeypatch.setattr(counts_log, 'CHARACTERS', 50)
    log = CountsLog([task], tmp_path, {})
    written = []
    for _ in range(9):
        log.add([task.zeros()])
        written.append(len(files(tmp_path)))
    assert written == [1, 1, 1, 1, 2, 2, 2, 2, 3]  # A line has 14 or more characters.
    assert all(len(content) < 200 for content in files(tmp_path).values())


@pytest.mark.usefixtures('a_file_per_image')
def test_every_file_reaches_a_store_once(fake_store, monkeypatch):  # noqa: F811
    uploaded = []
    monkeypatch.setattr(fake_store, 'failing', staticmethod(uploaded.append))
    copy = FolderCopy('gs://bucket/run')
    copy.fetch()
    task = PanopticTask(evaluated.CATEGORIES, 0.3, 0.6)
    log = CountsLog([task], copy.path / 'counts', {})
    for _ in range(20):
        log.add([task.zeros()])
        copy.push()
    assert uploaded == [f'bucket/run/counts/{number:06}.json' for number in range(20)]
    shutil.rmtree(copy.path)
    copy.fetch()
    assert CountsLog([task], copy.path / 'counts', {}).found == set(range(20))


def test_a_sample_is_spread_over_the_images(capsys):
    np.testing.assert_array_equal(spread(np.arange(10), 3), [2, 5, 9])
    for number in (40, 60, 99):
        gaps = np.diff(spread(np.arange(101), number), prepend=-1, append=100)
        assert gaps[:-1].max() <= -(-101 // number) and gaps[-1] == 0
    np.testing.assert_array_equal(spread(np.arange(3), 5), [0, 1, 2])
    assert spread(np.arange(3), 0).tolist() == []
    evaluated.evaluate(options={'num_images': 2})
    assert 'evaluation 2/2' in capsys.readouterr().out
    assert len(Rectangles()) > 2
