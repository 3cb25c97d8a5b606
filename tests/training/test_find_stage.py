"""Finding the stage that a path refers to, and the errors for paths that are none."""

import json

import pytest

from simcis_jax.training.find_stage import find_stage

REPORT = json.dumps({'stage': 1, 'per_class': {}})


def write_stage(root, *, trained=True, evaluated=True, converted=False):
    """Makes the files of a stage as training does, without content."""
    root.mkdir(parents=True)
    if trained:
        (root / 'checkpoints' / '9' / 'params').mkdir(parents=True)
        (root / 'checkpoints' / '10' / ('params' if converted else 'rest')).mkdir(parents=True)
        (root / 'checkpoints' / '11.orbax-checkpoint-tmp').mkdir()
    if evaluated:
        (root / 'evaluation.json').write_text(REPORT)
    return root


@pytest.fixture
def run(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for number in (1, 2, 10):
        write_stage(tmp_path / 'run' / f'stage_{number}')
    write_stage(tmp_path / 'run' / 'stage_11', evaluated=False)
    write_stage(tmp_path / 'run' / 'stage_12', trained=False)
    write_stage(tmp_path / 'run' / 'stage_best')
    return tmp_path / 'run'


def test_a_run_folder_means_its_newest_finished_stage(run):
    assert find_stage(run, '--checkpoint').root == run / 'stage_10'
    assert find_stage('run/', '--checkpoint').root == run / 'stage_10'


def test_a_converted_stage_counts_as_finished(tmp_path):
    stage = write_stage(tmp_path / 'models' / 'stage_3', evaluated=False, converted=True)
    assert find_stage(stage.parent, '--checkpoint').root == stage


def test_a_stage_folder_is_found_whether_finished_or_not(run, monkeypatch):
    for number in (1, 10, 11):
        assert find_stage(run / f'stage_{number}', '--checkpoint').number == number
    assert find_stage(run / 'stage_11', '').newest_checkpoint.name == '10'
    monkeypatch.chdir(run / 'stage_2')
    assert find_stage('.', '--checkpoint').root == run / 'stage_2'


@pytest.mark.parametrize(
    ('path', 'message'),
    [
        ('nowhere', 'it does not exist'),
        ('model.pth', 'it is a file; .* simcis_jax.convert import'),
        ('run/stage_12', 'it holds no checkpoint; train the stage first'),
        ('run/stage_1/checkpoints', 'it is inside one: give .*/run/stage_1'),
        ('run/stage_1/checkpoints/10', 'it is inside one: give .*/run/stage_1'),
        ('run/stage_best', 'rename it: N is the last stage that the model was trained on'),
        ('run/stage_²', 'it does not exist'),  # A digit, but no number.
        ('begun', 'no stage in it is finished; .*/begun/stage_1 has a checkpoint'),
        ('empty', 'it holds no checkpoint'),
    ],
)
def test_the_error_says_why_a_path_is_not_a_stage(run, tmp_path, path, message):
    (tmp_path / 'model.pth').touch()
    (tmp_path / 'empty').mkdir()
    write_stage(tmp_path / 'begun' / 'stage_1', evaluated=False)
    expected = (
        f'^--checkpoint={path} must be a folder stage_N of a run, .* finished stage; {message}'
    )
    with pytest.raises(ValueError, match=expected):
        find_stage(path, '--checkpoint')


def test_a_run_folder_can_be_refused(run):
    message = f'must be a folder stage_N .* made; the newest finished stage in it is {run}/stage_10'
    with pytest.raises(ValueError, match=message):
        find_stage(run, 'training.init_from', accept_run=False)


def test_a_damaged_report_is_an_error(run):
    (run / 'stage_10' / 'evaluation.json').write_text('{"per_class": [')
    with pytest.raises(ValueError, match='stage_10/evaluation.json is damaged .* delete it'):
        find_stage(run, '--checkpoint')
