"""An evaluation that is interrupted and started again, against one that is not."""

import json

import evaluated
import numpy as np
import pytest
from evaluated import SIZES, Rectangles

from simcis_jax.evaluation.counts_log import CountsLog
from simcis_jax.evaluation.evaluator import spread
from simcis_jax.evaluation.tasks import PanopticTask

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


@pytest.mark.parametrize('at', [0, 4])
def test_an_interrupted_evaluation_goes_on_with_equal_results(undisturbed, counted, tmp_path, at):
    images, kill = counted
    kill['at'] = at
    options = {'counts_folder': tmp_path}
    with pytest.raises(Killed):
        evaluated.evaluate(tasks=TASKS, options=options)
    with (tmp_path / 'process_0.jsonl').open('ab') as file:
        file.write(b'[[[[1, 1')  # Killed in the middle of a line.
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


def test_counts_of_another_model_are_not_used(tmp_path):
    path = tmp_path / 'counts.jsonl'
    task = PanopticTask(evaluated.CATEGORIES, 0.3, 0.6)
    log = CountsLog([task], path, {'params': 1})
    log.add([task.zeros()])
    log.close()
    assert CountsLog([task], path, {'params': 1}).num_images == 1
    assert CountsLog([task], path, {'params': 2}).num_images == 0
    assert [json.loads(line) for line in path.read_text().splitlines()] == [{'params': 2}]


@pytest.mark.parametrize('damage', [b'{"half": \n', b'[]\n', b'[[1]]\n', b'[null]\n'])
def test_images_after_a_damaged_line_are_counted_again(tmp_path, damage):
    path = tmp_path / 'counts.jsonl'
    task = PanopticTask(evaluated.CATEGORIES, 0.3, 0.6)

    def opened():
        log = CountsLog([task], path, {'params': 1})
        log.close()
        return log.num_images

    log = CountsLog([task], path, {'params': 1})
    log.add([task.zeros()])
    log.add([task.zeros()])
    log.close()
    header, first, last = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(header + first + damage + last)
    assert opened() == 1
    assert path.read_bytes() == header + first


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
