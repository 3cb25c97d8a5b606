"""Tests of reading folders, unpacked or inside archives."""

import io
import tarfile
import zipfile

import pytest

from simcis_jax.data.file_tree import FileTree

CONTENT = {'images/val/b.jpg': b'bbb', 'images/val/a.jpg': b'aa', 'images/val/.c.jpg': b'hidden'}


def unpacked(root):
    for name, content in CONTENT.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(content)


def zipped(path, prefix=''):
    with zipfile.ZipFile(path, 'w') as archive:
        archive.writestr(f'{prefix}images/', '')
        for name, content in CONTENT.items():
            archive.writestr(prefix + name, content)
        archive.writestr('__MACOSX/images/val/a.jpg', b'wrong')
        archive.writestr(f'{prefix}more/images/train/x.jpg', b'another folder')


def tarred(path, mode='w'):
    with tarfile.open(path, mode) as archive:
        for name, content in CONTENT.items():
            member = tarfile.TarInfo(f'./data/{name}')
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))


@pytest.fixture(params=['unpacked', 'one_below', 'zip', 'zip_below', 'tar', 'zip_itself'])
def source(request, tmp_path):
    root = tmp_path / 'source'
    root.mkdir()
    if request.param == 'unpacked':
        unpacked(root)
    elif request.param == 'one_below':
        unpacked(root / 'data')
    elif request.param == 'tar':
        tarred(root / 'a.tar')
    else:
        zipped(root / 'a.zip', 'data/' if request.param == 'zip_below' else '')
    return root / 'a.zip' if request.param == 'zip_itself' else root


def test_a_folder_is_found_unpacked_and_in_archives(source):
    files = FileTree(source).find('images/val')
    assert files.names == ['a.jpg', 'b.jpg']
    assert [files.read(name) for name in files.names] == [b'aa', b'bbb']
    assert files.where.endswith('images/val')


def test_a_folder_that_is_not_found_is_an_error(source):
    with pytest.raises(FileNotFoundError, match='holds no images/test with files'):
        FileTree(source).find('images/test')


def test_a_missing_source_is_an_error(tmp_path):
    with pytest.raises(FileNotFoundError, match='nowhere does not exist'):
        FileTree(tmp_path / 'nowhere')


def test_an_unpacked_folder_is_preferred_to_an_archive(tmp_path):
    zipped(tmp_path / 'a.zip')
    unpacked(tmp_path / 'data')
    assert FileTree(tmp_path).find('images/val').where == str(tmp_path / 'data/images/val')


def test_a_damaged_zip_is_an_error(tmp_path):
    zipped(tmp_path / 'a.zip')
    whole = (tmp_path / 'a.zip').read_bytes()
    (tmp_path / 'a.zip').write_bytes(whole[:-30])
    with pytest.raises(ValueError, match='a.zip is damaged .* download it again'):
        FileTree(tmp_path).find('images/val')
    flipped = bytearray(whole)
    flipped[whole.index(b'bbb')] ^= 1
    (tmp_path / 'a.zip').write_bytes(flipped)
    with pytest.raises(ValueError, match='a.zip: images/val/b.jpg is damaged'):
        FileTree(tmp_path).find('images/val').read('b.jpg')


def test_a_truncated_or_compressed_tar_is_an_error(tmp_path):
    tarred(tmp_path / 'a.tar')
    whole = (tmp_path / 'a.tar').read_bytes()
    (tmp_path / 'a.tar').write_bytes(whole[:700])  # Inside the second header.
    with pytest.raises(ValueError, match='a.tar is damaged'):
        FileTree(tmp_path).find('images/val')
    tarred(tmp_path / 'a.tar', 'w:gz')
    with pytest.raises(ValueError, match='a.tar is damaged or compressed .* unpack it'):
        FileTree(tmp_path).find('images/val')
