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


def test_any_other_error_keeps_its_traceback():
    def program():
        _, _ = [1]  # A ValueError that is a bug.

    with pytest.raises(ValueError, match='not enough values'):
        command.start(program, uses_devices=False)


def test_paths_expand_the_home_folder(monkeypatch):
    monkeypatch.setenv('HOME', '/home/someone')
    parser = command.make_parser('test', '')
    parser.add_argument('--out', type=command.path)
    assert parser.parse_args(['--out=~/x']).out == '/home/someone/x'


def test_an_unknown_argument_is_an_error(capsys):
    with pytest.raises(SystemExit):
        command.split_overrides(command.make_parser('test', ''), ['--confg.a=1'])
    assert "unexpected '--confg.a=1'" in capsys.readouterr().err
