"""Errors of the system become errors of the user, which name the file; no others do."""

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
        (writing, errno.ENOSPC, StorageError, r'\(No space left on device\); make room'),
        (writing, errno.EROFS, StorageError, 'Read-only file system'),
    ],
)
def test_an_error_of_the_system_names_the_file(around, code, kind, message):
    with pytest.raises(kind, match=message) as error, around('a.png'):
        raise OSError(code, os.strerror(code))
    assert type(error.value) is kind


@pytest.mark.parametrize('around', [reading, writing])
def test_other_errors_stay_as_they_are(around):
    for error in (KeyError('x'), UserError('x'), MissingFileError('x')):
        with pytest.raises(type(error)) as raised, around('a.png'):
            raise error
        assert raised.value is error


def test_a_write_that_fails_leaves_the_old_file_and_no_part(tmp_path):
    write_atomically(tmp_path / 'a.txt', 'old')
    with pytest.raises(KeyError), replacing(tmp_path / 'a.txt') as part:
        part.write_text('new')
        raise KeyError
    assert [p.name for p in tmp_path.iterdir()] == ['a.txt']
    assert (tmp_path / 'a.txt').read_text() == 'old'
    with pytest.raises(FileError, match='below/a.txt cannot be written'):
        write_atomically(tmp_path / 'below' / 'a.txt', 'new')
