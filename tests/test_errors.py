"""An OSError becomes a user error that names the file; other errors are unchanged."""

import errno
import os

import pytest

from simcis_jax.errors import FileError, MissingFileError, StorageError, UserError, reading, writing
from simcis_jax.runtime.files import replacing, write_atomically


@pytest.mark.parametrize(
    ('around', 'code', 'kind', 'message'),
    [
        (reading, errno.ENOENT, MissingFileError, 'a.png does not exist'),
        (reading, errno.EISDIR, FileError, 'a.png is a folder'),
        (reading, errno.ENOTDIR, FileError, 'a.png must be a folder'),
        (reading, errno.EACCES, FileError, r'a.png cannot be read \(Permission denied\)'),
        (writing, errno.EACCES, FileError, 'a.png cannot be written .* choose another path'),
        (writing, errno.ENAMETOOLONG, FileError, r'\(File name too long\); choose another path'),
        (writing, errno.ENOSPC, StorageError, r'\(No space left on device\); free some space'),
        (writing, errno.EROFS, StorageError, 'Read-only file system'),
    ],
)
def test_an_os_error_becomes_a_user_error_that_names_the_file(around, code, kind, message):
    with pytest.raises(kind, match=message) as error, around('a.png'):
        raise OSError(code, os.strerror(code))
    assert type(error.value) is kind


@pytest.mark.parametrize('around', [reading, writing])
def test_other_errors_are_unchanged(around):
    for error in (KeyError('x'), UserError('x'), MissingFileError('x')):
        with pytest.raises(type(error)) as raised, around('a.png'):
            raise error
        assert raised.value is error


def test_a_failed_write_keeps_the_old_file_and_leaves_no_partial_one(tmp_path):
    write_atomically(tmp_path / 'a.txt', 'old')
    with pytest.raises(KeyError), replacing(tmp_path / 'a.txt') as part:
        part.write_text('new')
        raise KeyError
    assert [p.name for p in tmp_path.iterdir()] == ['a.txt']
    assert (tmp_path / 'a.txt').read_text() == 'old'
    with pytest.raises(FileError, match='below/a.txt cannot be written'):
        write_atomically(tmp_path / 'below' / 'a.txt', 'new')
