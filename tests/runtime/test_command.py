import pytest

from simcis_jax.errors import FileError, InputError
from simcis_jax.runtime import command


@pytest.mark.parametrize('error', [InputError('7 is odd; take 8.'), FileError('no such folder')])
def test_an_error_of_the_user_is_one_line(error, capsys):
    def program():
        raise error

    with pytest.raises(SystemExit) as stopped:
        command.start(program, uses_devices=False)
    assert stopped.value.code == 1
    assert capsys.readouterr().err == f'error: {error}\n'


def test_a_fault_of_the_program_keeps_its_traceback():
    def program():
        _, _ = [1]  # Raises ValueError, but not on purpose.

    with pytest.raises(ValueError, match='not enough values'):
        command.start(program, uses_devices=False)


def test_a_path_may_begin_with_the_home_folder(monkeypatch):
    monkeypatch.setenv('HOME', '/home/someone')
    parser = command.make_parser('test', '')
    parser.add_argument('--out', type=command.path)
    assert parser.parse_args(['--out=~/x']).out == '/home/someone/x'


def test_an_argument_that_nothing_reads_is_refused(capsys):
    with pytest.raises(SystemExit):
        command.split_overrides(command.make_parser('test', ''), ['--confg.a=1'])
    assert "unexpected '--confg.a=1'" in capsys.readouterr().err
