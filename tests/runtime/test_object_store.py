"""Folders of object stores and their copies on the local disk."""

import os

import pytest
from fake_store import fake_store  # noqa: F401

from simcis_jax.errors import FileError, InputError
from simcis_jax.runtime import object_store
from simcis_jax.runtime.object_store import FolderCopy, Store, check_local, downloaded

URL = 'gs://bucket/runs/a'


def write(copy, files):
    for name, text in files.items():
        path = copy.path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)


def contents(folder):
    return {p.relative_to(folder).as_posix(): p.read_text() for p in folder.rglob('*.txt')}


def test_a_copy_is_uploaded_and_fetched_on_another_machine(fake_store, tmp_path, monkeypatch):  # noqa: F811
    copy = FolderCopy(URL)
    copy.fetch()
    files = {'a.txt': 'first', 'deep/er/b.txt': 'second'}
    write(copy, files)
    copy.push()
    assert {name: content for name, (content, _) in fake_store.files.items()} == {
        'bucket/runs/a/a.txt': b'first',
        'bucket/runs/a/deep/er/b.txt': b'second',
    }
    monkeypatch.setenv('XDG_CACHE_HOME', str(tmp_path / 'elsewhere'))
    other = FolderCopy(URL)
    other.fetch()
    assert other.path != copy.path and contents(other.path) == files


def test_empty_files_that_stand_for_folders_are_no_files(fake_store):  # noqa: F811
    fake_store.files = {'bucket/runs/a/': (b'', 0), 'bucket/runs/a/deep/': (b'', 1)}
    copy = FolderCopy(URL)
    copy.fetch()
    assert os.listdir(copy.path) == []


@pytest.mark.parametrize('name', ['../../a.txt', '/etc/a.txt', 'deep//a.txt', 'deep/./a.txt'])
def test_a_name_that_leads_out_of_the_copy_is_refused(fake_store, name):  # noqa: F811
    fake_store.files = {f'bucket/runs/a/{name}': (b'harm', 0)}
    with pytest.raises(FileError, match='gs://bucket/runs/a has a file named .* rename it in the'):
        FolderCopy(URL).fetch()


def test_only_what_changed_is_transferred(fake_store):  # noqa: F811
    written = []
    fake_store.failing = staticmethod(written.append)
    copy = FolderCopy(URL)
    copy.fetch()
    write(copy, {'a.txt': 'a', 'b.txt': 'b', 'c/c.txt': 'c'})
    copy.push()
    del written[:]
    write(copy, {'b.txt': 'changed'})
    (copy.path / 'c' / 'c.txt').unlink()
    copy.push()
    assert written == ['bucket/runs/a/b.txt']
    assert sorted(fake_store.files) == ['bucket/runs/a/a.txt', 'bucket/runs/a/b.txt']

    Store(URL).write('a.txt', b'A')  # By another machine.
    again = FolderCopy(URL)
    again.fetch()
    assert fake_store.downloads == ['bucket/runs/a/a.txt']
    assert contents(again.path) == {'a.txt': 'A', 'b.txt': 'changed'}
    assert not (again.path / 'c').exists()


def test_what_the_copy_alone_holds_is_removed(fake_store):  # noqa: F811
    copy = FolderCopy(URL)
    copy.fetch()
    write(copy, {'kept.txt': 'kept'})
    copy.push()
    write(copy, {'kept.txt': 'not uploaded', 'steps/7/lost.txt': 'lost'})
    again = FolderCopy(URL)
    again.fetch()
    assert contents(again.path) == {'kept.txt': 'kept'}
    assert os.listdir(again.path) == ['kept.txt']


def test_files_are_uploaded_in_the_order_given_and_the_oldest_first(fake_store):  # noqa: F811
    written = []
    fake_store.failing = staticmethod(written.append)
    copy = FolderCopy(URL)
    copy.fetch()
    for second, name in enumerate(('z.txt', 'b.txt', 'last.txt', 'a.txt')):
        write(copy, {name: name})
        os.utime(copy.path / name, (second, second))
    copy.push(lambda name: name == 'last.txt')
    assert [name.rsplit('/')[-1] for name in written] == ['z.txt', 'b.txt', 'a.txt', 'last.txt']


def test_an_upload_that_failed_is_repeated(fake_store):  # noqa: F811
    def fail(name):
        raise ConnectionError('no route to host')

    copy = FolderCopy(URL)
    copy.fetch()
    write(copy, {'a.txt': 'a'})
    working, fake_store.failing = fake_store.failing, staticmethod(fail)
    message = r'gs://bucket/runs/a/a.txt cannot be written \(ConnectionError: no route to host\)'
    with pytest.raises(FileError, match=message):
        copy.push()
    fake_store.failing = staticmethod(working)
    copy.push()
    assert list(fake_store.files) == ['bucket/runs/a/a.txt']


def test_addresses_that_cannot_be_used(fake_store, monkeypatch):  # noqa: F811
    with pytest.raises(InputError, match='ftp://x is in an unknown kind of store; gs:// and s3://'):
        Store('ftp://x')

    def absent(url):
        raise ImportError

    monkeypatch.setattr('fsspec.url_to_fs', absent)
    with pytest.raises(InputError, match='needs a package .*: pip install s3fs$'):
        Store('s3://bucket')
    with pytest.raises(InputError, match='training.init_from=gs://b must be a path on a disk'):
        check_local('gs://b', 'training.init_from')


def test_a_path_on_a_disk_is_downloaded_nowhere(tmp_path):
    assert downloaded(str(tmp_path)) == str(tmp_path)


def test_a_large_file_that_is_deleted_while_it_is_uploaded_is_left_out(fake_store, monkeypatch):  # noqa: F811
    monkeypatch.setattr(object_store, '_READ_WHOLE', 0)
    copy = FolderCopy(URL)
    copy.fetch()
    write(copy, {'gone.txt': 'x', 'there.txt': 'y'})
    put_file = fake_store.put_file

    def put(self, path, name, **options):
        if path.endswith('gone.txt'):
            os.unlink(path)
        return put_file(self, path, name, **options)

    monkeypatch.setattr(fake_store, 'put_file', put)
    copy.push()
    assert [name.rpartition('/')[2] for name in fake_store.files] == ['there.txt']
