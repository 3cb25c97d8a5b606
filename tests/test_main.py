"""The command line: bad input ends in a one-line error."""

import subprocess
import sys

import pytest
from tiny import tiny_config

from simcis_jax import main


def error_of(*arguments):
    command = [sys.executable, '-m', 'simcis_jax.main', *arguments]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 1
    assert 'Traceback' not in done.stderr
    return done.stderr.strip().splitlines()[-1]


@pytest.mark.parametrize(
    ('arguments', 'message'),
    [
        (['--config=configs/shapes_cps_8_2.py', '--config.model.num_querys=3'], 'num_queries'),
        (['--config=configs/nowhere.py'], 'configs/nowhere.py does not exist'),
        (['--config=shapes_cps_8'], ': shapes_cps_8_2, shapes_cps_8_1'),
        (['--config=configs/camvid_cps_6_5.py'], '--config.data.root='),
        pytest.param(
            ['--config=configs/camvid_cps_6_5.py', '--config.data.root=nowhere'],
            'nowhere/images/train does not exist',
            marks=pytest.mark.slow,
        ),
        pytest.param(
            ['--config=configs/shapes_cps_8_2.py', '--config.protocol.increment=3'],
            'protocol.increment must be one of [1, 2, 4]',
            marks=pytest.mark.slow,
        ),
        (
            ['--config=configs/shapes_cps_8_2.py', '--config.protocol.order=0,1,1'],
            'protocol.order must be a permutation of the 12 labels',
        ),
        pytest.param(
            ['--config=configs/shapes_cps_8_2.py', '--config.model.num_queries=500'],
            'more than the 84 positions',
            marks=pytest.mark.slow,
        ),
        (
            [
                '--config=configs/shapes_cps_8_2.py',
                '--config.optimizer.base_learning_rate=nan',
                '--config.training.batch_size=0',
            ],
            'training.batch_size=0 must be a whole number, at least 1.',
        ),
        (
            [
                '--config=configs/shapes_cps_8_2.py',
                '--config.method.name=finetune',
                '--config.method.simcis.csl_weight=99',
            ],
            "method.simcis.csl_weight belongs to another method than method.name='finetune'",
        ),
    ],
)
def test_bad_input_is_one_line_and_leaves_no_folder(arguments, message, tmp_path):
    workdir = tmp_path / 'run'
    assert message in error_of(*arguments, f'--workdir={workdir}')
    assert not workdir.exists()


def test_a_folder_with_other_files_is_refused(tmp_path):
    (tmp_path / 'thesis.tex').write_text('precious')
    with pytest.raises(ValueError, match='is not empty and holds no config.json'):
        main.run(tiny_config(), str(tmp_path))
    assert [path.name for path in tmp_path.iterdir()] == ['thesis.tex']
