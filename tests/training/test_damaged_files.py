"""A damaged file in a work directory is an error that names the file and the way out."""

import errno
import json
import shutil

import pytest
from tensorboardX.event_file_writer import EventsWriter

from simcis_jax.errors import StorageError
from simcis_jax.training import metrics_log
from simcis_jax.training.metrics_log import MetricsLog, read_metrics
from simcis_jax.training.stage_folder import StageFolder
from simcis_jax.training.workdir import Workdir
from simcis_jax.types import Categories

CATEGORIES = Categories(('sky',), (False,), ((0, 0, 0),))
RECORD = '{"stage": 1, "step": 2, "total": 0.5, "csl": null}'


@pytest.mark.parametrize(
    'content',
    [
        '', '{', '[]', 'null', '{}', '{"per_class": []}', '{"per_class": {"sky": 1}}',
        '{"per_class": {"sky": {"pq": "1"}}}', '{"per_class": {}, "pq": {"base": 1.0}}',
        '{"per_class": {}, "stage": "1"}', '{"per_class": {"sky": {"pq": NaN}}}',
        '{"per_class": {}, "pq": {"all": Infinity}}',
        '{"per_class": {}, "settings": "1"}',
    ],
)  # fmt: skip
def test_damaged_scores(tmp_path, content):
    (tmp_path / 'evaluation.json').write_text(content)
    with pytest.raises(ValueError, match='evaluation.json is damaged .* delete it and repeat the'):
        StageFolder(tmp_path).read_report()


def test_missing_scores_are_none_and_a_folder_in_their_place_is_an_error(tmp_path):
    assert StageFolder(tmp_path).read_report() is None
    (tmp_path / 'evaluation.json').mkdir()
    with pytest.raises(OSError, match='evaluation.json is a folder, but a file is needed'):
        StageFolder(tmp_path).read_report()


@pytest.mark.parametrize('name', ['pq', 'iou'])
def test_a_class_may_have_the_name_of_a_metric(tmp_path, name):
    report = {'stage': 1, 'pq': {'all': None}, 'per_class': {name: {'pq': 1.5, 'tp': 1}}}
    (tmp_path / 'evaluation.json').write_text(json.dumps(report))
    assert StageFolder(tmp_path).read_report() == report


@pytest.mark.parametrize(
    'line', ['\0\0\0', '{"stage": 1', '[]', '{"stage": 1}', '{"stage": 1, "step": null}',
             '{"stage": 1, "step": 1, "total": "0.5"}', '{"stage": 1, "step": 1, "settings": 1}'],
)  # fmt: skip
def test_a_damaged_line_of_the_log(tmp_path, line):
    path = tmp_path / 'metrics.jsonl'
    path.write_text(f'{RECORD}\n{line}\n{RECORD}\n')
    with pytest.raises(
        ValueError, match=r'metrics.jsonl: line 2 is not a record .* delete this line'
    ):
        read_metrics(path)


def test_a_last_line_is_incomplete_wherever_it_ends(tmp_path):
    path = tmp_path / 'metrics.jsonl'
    scores = RECORD.replace('null', '1, "settings": {"tasks": ["panoptic"]}')
    for length in range(len(scores)):  # The inner object ends in a brace, too.
        path.write_text(f'{RECORD}\n{scores[:length]}')
        assert read_metrics(path) == [json.loads(RECORD)]
    path.write_text(f'{RECORD}\n[]\n')
    with pytest.raises(ValueError, match=r'metrics.jsonl: line 2 is not a record'):
        read_metrics(path)


def test_a_log_with_an_incomplete_last_line_is_continued(tmp_path):
    path = tmp_path / 'metrics.jsonl'
    assert read_metrics(path) == []
    path.write_text(f'{RECORD}\n{RECORD[:30]}')
    assert read_metrics(path) == [json.loads(RECORD)]
    with MetricsLog(tmp_path, stage=1, first_step=2) as log:
        log.write(3, {'total': float('nan')})
    lines = path.read_text().splitlines()
    assert lines[0] == RECORD and json.loads(lines[1])['total'] is None and len(lines) == 2


def full(*_):
    raise OSError(errno.ENOSPC, 'No space left on device')


@pytest.mark.parametrize('method', ['write_event', 'flush'])
def test_a_log_on_a_full_disk_is_an_error_and_never_waits(tmp_path, monkeypatch, method):
    monkeypatch.setattr(metrics_log, 'FLUSHING', 0)
    log = MetricsLog(tmp_path, stage=1, first_step=0)
    numbers = {f'term {number}': 1.0 for number in range(30)}
    log.write(1, numbers)
    with monkeypatch.context() as patch:
        patch.setattr(EventsWriter, method, full)
        with pytest.raises(StorageError, match=r'stage_1 cannot be written \(No space left'):
            log.write(2, numbers)
    with (
        open('/dev/full', 'w', encoding='utf-8') as log._file,
        pytest.raises(
            StorageError, match=r'metrics\.jsonl cannot be written \(No space left.*free some space'
        ),
    ):
        try:
            log.write(3, numbers)
        finally:
            with pytest.raises(StorageError, match='metrics'):
                log.__exit__()


def test_copying_a_stage_to_a_full_disk_is_an_error(tmp_path, monkeypatch):
    (tmp_path / 'there/stage_1/checkpoints').mkdir(parents=True)
    (tmp_path / 'there/stage_1/checkpoints/file').touch()
    monkeypatch.setattr(shutil, 'copy2', full)
    with pytest.raises(StorageError, match=r'here/stage_1 cannot be written \(No space left'):
        StageFolder(tmp_path / 'here/stage_1').copy_from(StageFolder(tmp_path / 'there/stage_1'))


@pytest.mark.parametrize('content', ['{"data"', '[1]'])
def test_a_damaged_config(tmp_path, content):
    (tmp_path / 'config.json').write_text(content)
    with Workdir(tmp_path, {}) as workdir, pytest.raises(ValueError, match='config.json'):
        workdir.claim(CATEGORIES)


def test_a_workdir_that_is_a_file_or_lies_in_one(tmp_path):
    (tmp_path / 'run').touch()
    for name in ('run', 'run/below'):
        with pytest.raises(ValueError, match='--workdir=.* must be a folder, but .*run is a file'):
            Workdir(tmp_path / name, {})
