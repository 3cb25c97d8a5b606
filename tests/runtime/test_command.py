import errno
import signal
import subprocess
import sys

import pytest

from simcis_jax.errors import FileError, InputError
from simcis_jax.runtime import command


@pytest.mark.parametrize('error', [InputError('7 is odd; take 8.'), FileError('no such folder')])
def test_a_user_error_is_printed_as_one_line(error, capsys):
    def program():
        raise error

    with pytest.raises(SystemExit) as stopped:
        command.start(program, uses_devices=False)
    assert stopped.value.code == 1
    assert capsys.readouterr().err == f'error: {error}\n'


def test_a_file_that_must_not_be_used_is_named(capsys):
    def program():
        raise PermissionError(errno.EACCES, 'Permission denied', 'data/a.json')

    with pytest.raises(SystemExit):
        command.start(program, uses_devices=False)
    assert capsys.readouterr().err.startswith(
        'error: data/a.json cannot be used (Permission denied)'
    )


def test_any_other_error_keeps_its_traceback():
    def program():
        _, _ = [1]  # A ValueError that is a bug.

    with pytest.raises(ValueError, match='not enough values'):
        command.start(program, uses_devices=False)


STOPPED = """
import os, signal, sys
from simcis_jax.runtime import command

def program():
    try:
        os.kill(os.getpid(), int(sys.argv[1]))
        signal.pause()
    finally:
        print('results are written')

command.start(program, uses_devices=False)
"""


@pytest.mark.parametrize('number', [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_a_command_without_a_traceback_after_its_finally_blocks(number):
    arguments = [sys.executable, '-c', STOPPED, str(int(number))]
    done = subprocess.run(arguments, capture_output=True, text=True)
    assert done.returncode == 128 + number
    assert done.stdout == 'results are written\n' and 'Traceback' not in done.stderr


def test_handling_signals_does_not_start_the_devices():
    code = (
        'from jax._src import xla_bridge; from simcis_jax.runtime import interruption; '
        'interruption.stop_at_once(); assert not xla_bridge.backends_are_initialized()'
    )
    subprocess.run([sys.executable, '-c', code], check=True)


def test_paths_expand_the_home_folder(monkeypatch):
    monkeypatch.setenv('HOME', '/home/someone')
    parser = command.make_parser('test', '')
    parser.add_argument('--out', type=command.path)
    assert parser.parse_args(['--out=~/x']).out == '/home/someone/x'


def test_addresses_are_refused_unless_an_argument_takes_them(capsys):
    parser = command.make_parser('test', '')
    parser.add_argument('--out', type=command.path)
    parser.add_argument('--workdir', type=command.path_or_address)
    assert parser.parse_args(['--workdir=gs://bucket/a']).workdir == 'gs://bucket/a'
    with pytest.raises(SystemExit):
        parser.parse_args(['--out=gs://bucket/a'])
    error = 'argument --out: gs://bucket/a must be a path on a disk; only --workdir of simcis_jax'
    assert error in capsys.readouterr().err


def test_an_unknown_argument_is_an_error(capsys):
    with pytest.raises(SystemExit):
        command.split_overrides(command.make_parser('test', ''), ['--confg.a=1'])
    assert "unexpected '--confg.a=1'" in capsys.readouterr().err


def test_a_bare_name_is_a_config_of_the_package(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    config = command.read_config('shapes_cps_8_2', ['--config.protocol.base=10'])
    assert (config.data.name, config.protocol.base) == ('shapes', 10)


def test_a_file_anywhere_is_a_config_and_may_build_on_those_of_the_package(tmp_path):
    file = tmp_path / 'mine.py'
    file.write_text(
        'from simcis_jax.configs import common\n'
        'def get_config():\n'
        '    config = common.get_config()\n'
        '    config.protocol.base = 7\n'
        '    return config\n'
    )
    assert command.read_config(str(file)).protocol.base == 7


@pytest.mark.parametrize(
    ('name', 'near'),
    [('ade_cps_100_11', 'ade_cps_100_10'), ('cfg/ade_cps_100_5.py', 'ade_cps_100_5')],
)
def test_an_unknown_config_names_the_nearest_and_where_they_are(name, near):
    with pytest.raises(FileError, match=rf'{name} does not exist; .*/configs: {near},'):
        command.read_config(name)


def test_a_file_without_a_config_is_refused(tmp_path):
    (tmp_path / 'mine.py').write_text('config = {}\n')
    with pytest.raises(InputError, match=r'mine\.py is not a config: .* get_config\(\)'):
        command.read_config(f'{tmp_path}/mine.py')


@pytest.mark.parametrize(
    ('change', 'nearest'), [('modl.dtype=1', 'model'), ('model.dtpe=1', 'dtype')]
)
def test_an_unknown_key_names_the_nearest(change, nearest):
    with pytest.raises(InputError, match=f'unknown config key .*"{nearest}"'):
        command.read_config('shapes_cps_8_2', [f'--config.{change}'])


@pytest.mark.parametrize('change', ['=1', 'data..name=x', 'method.simcis.=1', 'dat=1'])
def test_a_key_that_is_none_is_refused(change):
    with pytest.raises(InputError, match=r'must have the form --config\.GROUP\.KEY=VALUE'):
        command.read_config('shapes_cps_8_2', [f'--config.{change}'])


def test_a_key_below_a_value_is_unknown():
    with pytest.raises(InputError, match=r'unknown config key .*data\.name\.x'):
        command.read_config('shapes_cps_8_2', ['--config.data.name.x=1'])


@pytest.mark.parametrize(
    ('change', 'value'),
    [
        ('model.class_prior=None', None),
        ('model.class_prior=0.5', 0.5),
        ('data.flip=false', False),
        ('data.flip', True),
        ('data.root=123', '123'),
        ('data.root=a=b', 'a=b'),
        ('optimizer.base_learning_rate=1e-3', 1e-3),
        ('optimizer.milestones=0.5', (0.5,)),
        ('data.scale_range=(1, 2)', (1, 2)),
        ('evaluation.tasks=panoptic,semantic', ('panoptic,semantic',)),
        ('training.seed=x', 'x'),  # Refused with the rule of the key, with all other faults.
    ],
)
@pytest.mark.parametrize('config', ['shapes_cps_8_2', 'ade_cps_100_10'])
def test_a_value_is_written_as_in_python(config, change, value):
    group, key = change.partition('=')[0].split('.')
    assert command.read_config(config, [f'--config.{change}'])[group][key] == value


def test_an_order_of_labels_can_be_replaced_by_a_name(tmp_path):
    (tmp_path / 'mine.py').write_text(
        'from simcis_jax.configs import common\n'
        'def get_config():\n'
        '    config = common.get_config()\n'
        '    with config.ignore_type():\n'
        '        config.protocol.order = (1, 0)\n'
        '    return config\n'
    )
    name = f'{tmp_path}/mine.py'
    assert command.read_config(name, ['--config.protocol.order=origin']).protocol.order == 'origin'
    assert command.read_config(name, ['--config.protocol.order=0,1']).protocol.order == (0, 1)


@pytest.mark.parametrize(
    ('change', 'fault'),
    [
        ('data.size.x=3', "unknown config key 'data.size.x': there is no 'x'; known: none"),
        ('method=simcis', 'sets a group of config keys; set those in it: .*method.name, '),
        ('method.plop=1', 'sets a group of config keys; set those in it: .*pod_weight, '),
        ('data.size', r'--config\.data\.size has no value; write --config\.data\.size=VALUE'),
    ],
)
def test_an_argument_that_names_no_key_or_no_value_is_refused(change, fault):
    with pytest.raises(InputError, match=fault):
        command.read_config('shapes_cps_8_2', [f'--config.{change}'])


@pytest.mark.parametrize(
    ('text', 'fault'),
    [
        ('def get_config():\n    return {}\n', r'mine\.py is not a config: .* returns a dict'),
        (
            '# A list: 1 ± 2\n1 ± 2\n',
            r'mine\.py is not a config: SyntaxError: invalid .*mine\.py, line 2',
        ),
        (
            'def get_config():\n    return [].nothing\n',
            r"mine\.py, line 2 is not a config: AttributeError: 'list' object has no .* 'nothing'",
        ),
        ('import nowhere_to_be_found\n', r'mine\.py, line 1 is not a config: ModuleNotFoundError'),
        ('def get_config(size):\n    pass\n', r'mine\.py is not a config: TypeError: .* missing 1'),
        ('get_config = 3\n', r"mine\.py is not a config: TypeError: 'int' object is not callable"),
    ],
)
def test_a_file_that_is_no_config_is_refused(text, fault, tmp_path):
    (tmp_path / 'mine.py').write_text(text)
    with pytest.raises(InputError, match=fault):
        command.read_config(f'{tmp_path}/mine.py')
