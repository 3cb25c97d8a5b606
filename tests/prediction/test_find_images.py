"""Finding images by path, folder and pattern."""

import os

import pytest

from simcis_jax.prediction.find_images import find_images

FILES = (
    'IMG1.jpg', 'IMG[1].jpg', 'note.txt', '.hidden.png', 'photos [2024]/a.JPG',
    'photos [2024]/more/b.png', 'photos 2/c.png', '.trash/d.png', 'earlier/panoptic.json',
    'earlier/e.png', 'earlier/overlay/e.png', 'out/overlay/f.png', 'out/g.png',
)  # fmt: skip
EVERYTHING = {
    'IMG1.jpg', 'IMG[1].jpg', 'photos [2024]/a.JPG', 'photos [2024]/more/b.png', 'photos 2/c.png',
    'earlier/e.png', 'out/g.png',
}  # fmt: skip


@pytest.fixture
def folder(tmp_path, monkeypatch):
    for name in FILES:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    (tmp_path / 'empty').mkdir()
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize(
    ('images', 'expected'),
    [
        (['IMG[1].jpg'], {'IMG[1].jpg'}),
        (['IMG[12].jpg'], {'IMG1.jpg'}),
        (['photos [2024]/*'], {'photos [2024]/a.JPG', 'photos [2024]/more/b.png'}),
        (['photos [2024]/*.JPG'], {'photos [2024]/a.JPG'}),
        (['photos [2024]/**/*.png'], {'photos [2024]/more/b.png'}),
        (['photos [0-9]/*.png'], {'photos 2/c.png'}),
        (['photos*/*.png'], {'photos 2/c.png'}),
        (['photos 2', 'IMG1.jpg', './photos 2/c.png'], {'photos 2/c.png', 'IMG1.jpg'}),
        (['note.txt', '.hidden.png'], {'note.txt', '.hidden.png'}),
        (['.'], EVERYTHING),
        (['*'], EVERYTHING | {'note.txt'}),
    ],
)
@pytest.mark.parametrize('absolute', [False, True])
def test_what_is_found(folder, images, expected, absolute):
    if absolute:
        images = [os.path.join(folder, name) for name in images]
    found = find_images(images, 'out')
    assert {os.path.relpath(path) for path in found} == expected and len(found) == len(expected)
    assert found == sorted(found)


@pytest.mark.parametrize(
    ('images', 'message'),
    [
        ('nowhere.jpg', '--images=nowhere.jpg does not exist; check the path'),
        ('', '--images= does not exist'),
        ('photos [1]/*.jpg', r'matches no file; .* \[\[\] for the bracket \[ itself'),
        ('empty', '--images=empty: there is no image; a folder must hold .*.jpg, .jpeg'),
        ('out/overlay', 'there is no image'),
    ],
)
def test_what_is_not_found_is_told(folder, images, message):
    with pytest.raises((ValueError, OSError), match=message):
        find_images(['IMG1.jpg', images] if 'fits' in message else [images], 'out')


def test_a_broken_link_is_an_image_without_a_result_and_hides_no_other(tmp_path):
    (tmp_path / 'a.png').touch()
    (tmp_path / 'b.png').symlink_to('nowhere.png')
    found = find_images([tmp_path], tmp_path / 'out')
    assert found == [tmp_path / 'a.png', tmp_path / 'b.png']
    assert find_images(found, tmp_path / 'out') == found


def test_linked_folders_are_searched_once(tmp_path):
    for name in ('photos/a.png', 'elsewhere/b.png'):
        (tmp_path / name).parent.mkdir()
        (tmp_path / name).touch()
    (tmp_path / 'photos' / 'link').symlink_to(tmp_path / 'elsewhere')
    (tmp_path / 'elsewhere' / 'cycle').symlink_to(tmp_path / 'photos')
    found = find_images([tmp_path / 'photos'], tmp_path / 'out')
    assert [path.name for path in found] == ['a.png', 'b.png']
