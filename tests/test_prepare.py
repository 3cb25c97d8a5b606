"""Tests of `simcis_jax.prepare`, from downloads to prepared data sets."""

import errno
import fcntl
import functools
import json
import multiprocessing
import shutil
import subprocess
import sys

import cv2
import numpy as np
import pytest
from data.ade20k_tree import make_tree
from data.panoptic_tree import make_cityscapes, make_coco

from simcis_jax import prepare as prepare_module
from simcis_jax.data import open_source
from simcis_jax.data.ade20k import Ade20k
from simcis_jax.errors import FileError, InputError, StorageError
from simcis_jax.prepare import main, prepare
from simcis_jax.runtime import lease


@pytest.fixture(scope='module')
def ade20k(tmp_path_factory):
    """A folder with a download in source/ and the data sets prepared from it in data/."""
    root = tmp_path_factory.mktemp('ade20k')
    make_tree(root / 'source', num_train=5, num_val=2)
    prepare('ade20k', root / 'source', root / 'data', allow_partial=True)
    return root


def damage(root, number=2):
    path = root / f'ADEChallengeData2016/images/training/ADE_train_{number:08}.jpg'
    path.write_bytes(path.read_bytes()[:300])
    return path


def files_below(root):
    return sorted(path.name for path in root.rglob('*') if path.is_file())


def ids_by_loops(png):
    """The segment ids of a panoptic PNG, decoded independently."""
    blue_green_red = cv2.imread(str(png)).astype(int)
    return blue_green_red[..., 2] + 256 * blue_green_red[..., 1] + 65536 * blue_green_red[..., 0]


def check_against_json(images, json_path, image_path):
    """Compares a prepared split with its COCO panoptic files, segment by segment."""
    content = json.loads(json_path.read_text())
    assert len(images) == len(content['annotations'])
    assert images.categories.ids == tuple(entry['id'] for entry in content['categories'])
    label_of = {
        entry['id']: images.categories.names.index(entry['name']) for entry in content['categories']
    }
    for index, annotation in enumerate(content['annotations']):
        example = images[index]
        assert example.image_id == str(annotation['image_id'])
        ids = ids_by_loops(json_path.with_suffix('') / annotation['file_name'])
        for segment in annotation['segments_info']:
            (slot,) = np.unique(example.segment_map[ids == segment['id']])
            assert (example.segment_map == slot).sum() == segment['area']
            assert example.labels[slot - 1] == label_of[segment['category_id']]
            assert example.crowd[slot - 1] == segment['iscrowd']
        assert (example.segment_map[ids == 0] == 0).all()
        stored = cv2.imread(str(image_path(annotation['image_id'])))
        np.testing.assert_array_equal(example.image, stored[..., ::-1])
        assert images.classes_of(index) == {
            label_of[segment['category_id']]
            for segment in annotation['segments_info']
            if not segment['iscrowd']
        }
        assert images.size_of(index) == ids.shape


@pytest.mark.parametrize('kind', ['panoptic', 'semantic'])
def test_prepared_ade20k_has_the_examples_of_the_download(ade20k, kind):
    for split, count in (('train', 5), ('val', 2)):
        images = open_source('prepared', split, root=str(ade20k / f'data/ade20k_{kind}'))
        raw = Ade20k(ade20k / 'source', split, kind)
        assert images.name == f'ade20k_{kind}_{split}' and images.categories == raw.categories
        assert len(images) == count
        for index in range(count):
            example, expected = images[index], raw[index]
            assert example.image_id == expected.image_id
            for name in ('image', 'segment_map', 'labels', 'crowd'):
                value = getattr(example, name)
                np.testing.assert_array_equal(value, getattr(expected, name))
                assert value.dtype == getattr(expected, name).dtype
            assert images.classes_of(index) == set(expected.labels.tolist())
            assert images.segments_of(index) == sorted(expected.labels.tolist())
            assert images.size_of(index) == expected.segment_map.shape


def test_coco_can_be_prepared(tmp_path):
    make_coco(tmp_path / 'source')
    (line,) = prepare('coco_panoptic', tmp_path / 'source', tmp_path, allow_partial=True)
    assert '3 train, 2 val images, 3 classes (2 things)' in line
    for split in ('train', 'val'):
        check_against_json(
            open_source('prepared', split, root=str(tmp_path / 'coco_panoptic')),
            tmp_path / f'source/annotations/panoptic_{split}2017.json',
            lambda number, split=split: tmp_path / f'source/{split}2017/{number:012}.jpg',
        )


def test_a_custom_data_set_needs_a_name_and_may_have_any_size(tmp_path):
    make_coco(tmp_path / 'source', official=False)
    with pytest.raises(
        ValueError, match='has 118287 train images, but the download has 3.*its own --name'
    ):
        prepare('coco_panoptic', tmp_path / 'source', tmp_path)
    prepare('coco_panoptic', tmp_path / 'source', tmp_path, name='mine')
    check_against_json(
        open_source('prepared', 'val', root=str(tmp_path / 'mine/1.0.0')),
        tmp_path / 'source/panoptic_val.json',
        lambda number: tmp_path / f'source/images/val/{number:012}.jpg',
    )


def test_cityscapes_can_be_prepared(tmp_path):
    make_cityscapes(tmp_path / 'source')
    prepare('cityscapes', tmp_path / 'source', tmp_path, allow_partial=True)
    for split in ('train', 'val'):
        images = open_source('prepared', split, root=str(tmp_path / 'cityscapes'))
        assert images.categories.names == ('road', 'sky', 'car')
        folder = tmp_path / 'source/leftImg8bit' / split
        check_against_json(
            images,
            tmp_path / f'source/gtFine/cityscapes_panoptic_{split}.json',
            lambda name, folder=folder: next(folder.rglob(f'{name}_leftImg8bit.png')),
        )


def test_an_incomplete_download_is_an_error(tmp_path, capsys):
    make_tree(tmp_path / 'source')
    with pytest.raises(SystemExit):
        main(['ade20k', f'--source={tmp_path}/source', f'--data_dir={tmp_path}/data'])
    message = capsys.readouterr().err
    assert message.count('\n') == 1 and '--allow_partial' in message
    assert 'ade20k_panoptic has 20210 train images, but the download has 4' in message
    assert not (tmp_path / 'data').exists()


def test_the_command_describes_the_data_set_also_when_it_exists_already(tmp_path, capsys):
    make_tree(tmp_path / 'source')
    arguments = [f'--source={tmp_path}/source', f'--data_dir={tmp_path}/data', '--allow_partial']
    main(['ade20k_semantic', *arguments])
    first = capsys.readouterr().out.splitlines()
    assert first[0].startswith('ade20k_semantic train 4/4') and 'left 0:00' in first[0]
    assert '4 train, 2 val images, 150 classes (100 things)' in first[-1]
    root = tmp_path / 'data/ade20k_semantic'
    assert first[-1].endswith(f'--config.data.name=prepared --config.data.root={root}')
    main(['ade20k_semantic', *arguments])
    assert capsys.readouterr().out.splitlines() == first[-1:]


def test_a_data_set_prepared_from_another_download_is_an_error(tmp_path):
    make_tree(tmp_path / 'source')
    prepare('ade20k_semantic', tmp_path / 'source', tmp_path, allow_partial=True)
    make_tree(tmp_path / 'source', num_train=6)
    with pytest.raises(ValueError, match='holds 4 train images, the download 6.*remove it'):
        prepare('ade20k_semantic', tmp_path / 'source', tmp_path, allow_partial=True)


def correct_json(root):
    """Adds a class 'robot' and gives it the segments of 'person'; returns the split."""
    path = root / 'panoptic_train.json'
    content = json.loads(path.read_text())
    content['categories'].append({'id': 201, 'name': 'robot', 'isthing': 1})
    for annotation in content['annotations']:
        for segment in annotation['segments_info']:
            segment['category_id'] = {1: 201}.get(segment['category_id'], segment['category_id'])
    path.write_text(json.dumps(content))
    return 'train'


def swap_labels(root):
    """Changes the classes of two segments in an image; returns the split."""
    path = root / 'panoptic_val.json'
    content = json.loads(path.read_text())
    first, second, *_ = content['annotations'][0]['segments_info']
    first['category_id'], second['category_id'] = 1, 200
    path.write_text(json.dumps(content))
    return 'val'


def move_pixels(root):
    """Changes a segment PNG but not the JSON; returns the split."""
    path = next((root / 'panoptic_val').iterdir())
    cv2.imwrite(str(path), cv2.imread(str(path))[::-1])
    return 'val'


@pytest.mark.parametrize('correct', [correct_json, swap_labels, move_pixels])
def test_a_data_set_prepared_from_other_annotations_is_an_error(tmp_path, correct):
    root = make_coco(tmp_path / 'source', official=False)
    (line,) = prepare('coco_panoptic', root, tmp_path, name='mine')
    assert prepare('coco_panoptic', root, tmp_path, name='mine') == [line]
    split = correct(root)
    with pytest.raises(ValueError, match=f'not prepared from these annotations of {split}.*remove'):
        prepare('coco_panoptic', root, tmp_path, name='mine')
    shutil.rmtree(tmp_path / 'mine')
    (line,) = prepare('coco_panoptic', root, tmp_path, name='mine')
    assert f'{4 if correct is correct_json else 3} classes' in line


def test_changed_annotations_of_ade20k_are_noticed_but_changed_images_are_not(tmp_path):
    root = make_tree(tmp_path / 'source')
    lines = prepare('ade20k_panoptic', root, tmp_path, allow_partial=True)
    image = root / 'ADEChallengeData2016/images/training/ADE_train_00000001.jpg'
    cv2.imwrite(str(image), cv2.imread(str(image)) // 2)
    assert prepare('ade20k_panoptic', root, tmp_path, allow_partial=True) == lines
    path = root / 'annotations_instance/validation/ADE_val_00000002.png'
    cv2.imwrite(str(path), 0 * cv2.imread(str(path)))
    with pytest.raises(ValueError, match='not prepared from these annotations of val'):
        prepare('ade20k_panoptic', root, tmp_path, allow_partial=True)


def test_a_data_set_without_checksums_can_be_opened_but_not_reused(tmp_path):
    root = make_coco(tmp_path / 'source', official=False)
    prepare('coco_panoptic', root, tmp_path, name='mine')
    path = tmp_path / 'mine/1.0.0/metadata.json'
    content = json.loads(path.read_text())
    del content['checksums']
    path.write_text(json.dumps(content))
    assert len(open_source('prepared', 'train', root=str(tmp_path / 'mine'))) == 3
    with pytest.raises(ValueError, match='holds no checksum of them; remove it'):
        prepare('coco_panoptic', root, tmp_path, name='mine')


@pytest.mark.parametrize('make', [make_coco, make_cityscapes])
def test_val_has_the_labels_of_train_even_if_it_lists_fewer_classes(tmp_path, make):
    root = make(tmp_path / 'source')
    kind = 'coco_panoptic' if make is make_coco else 'cityscapes'
    (path,) = root.rglob('*panoptic_val*.json')
    content = json.loads(path.read_text())
    last = content['categories'].pop(0)['id']
    left = content['categories'][-1]['id']
    for annotation in content['annotations']:
        for segment in annotation['segments_info']:
            segment['category_id'] = left
    path.write_text(json.dumps(content))
    prepare(kind, root, tmp_path, allow_partial=True)
    images = open_source('prepared', 'val', root=str(tmp_path / kind))
    for index in range(len(images)):
        assert {images.categories.ids[label] for label in images[index].labels} == {left}
    content['categories'][0]['id'] = last
    path.write_text(json.dumps(content))
    with pytest.raises(ValueError, match='categories are not those of the training split'):
        prepare(kind, root, tmp_path / 'again', allow_partial=True)
    assert not (tmp_path / 'again').exists()


def test_a_damaged_file_is_an_error_and_leaves_no_data_set(tmp_path):
    path = damage(make_tree(tmp_path / 'source'))
    with pytest.raises(ValueError) as error:
        prepare('ade20k_panoptic', tmp_path / 'source', tmp_path / 'data', allow_partial=True)
    assert str(path) in str(error.value) and '--skip_bad' in str(error.value)
    assert files_below(tmp_path / 'data') == []
    with pytest.raises(FileNotFoundError, match='holds no prepared data set'):
        open_source('prepared', 'train', root=str(tmp_path / 'data/ade20k_panoptic'))


def test_damaged_files_can_be_skipped_and_are_listed(tmp_path):
    path = damage(make_tree(tmp_path / 'source'))
    options = dict(allow_partial=True, skip_bad=True)
    lines = prepare('ade20k_panoptic', tmp_path / 'source', tmp_path, **options)
    listed = tmp_path / 'ade20k_panoptic/1.0.0/skipped.txt'
    assert '3 train, 2 val images, 1 skipped' in lines[0] and str(listed) in lines[0]
    (reason,) = listed.read_text().splitlines()
    assert reason.startswith(f'train: {path} (300 bytes) cannot be decoded')
    images = open_source('prepared', 'train', root=str(tmp_path / 'ade20k_panoptic'))
    assert [images[i].image_id[-1] for i in range(len(images))] == ['1', '3', '4']
    raw = Ade20k(tmp_path / 'source', 'train', 'panoptic')
    assert images.classes_of(1) == set(raw[2].labels.tolist())
    assert prepare('ade20k_panoptic', tmp_path / 'source', tmp_path, **options) == lines


def test_a_split_with_only_damaged_images_is_an_error(tmp_path):
    damage(make_tree(tmp_path / 'source', num_train=1), 1)
    with pytest.raises(
        ValueError, match='None of the train images can be read; the first error is: train: '
    ):
        prepare('ade20k_panoptic', tmp_path / 'source', tmp_path, allow_partial=True, skip_bad=True)


def test_files_of_an_interrupted_preparation_are_removed(tmp_path):
    make_tree(tmp_path / 'source')
    part = tmp_path / 'ade20k_semantic/incomplete/1.0.0'
    part.mkdir(parents=True)
    (part / 'train.part-7').write_bytes(b'half')
    with pytest.raises(FileNotFoundError, match='holds no prepared data set'):
        open_source('prepared', 'train', root=str(tmp_path / 'ade20k_semantic'))
    prepare('ade20k_semantic', tmp_path / 'source', tmp_path, allow_partial=True)
    assert [path.name for path in (tmp_path / 'ade20k_semantic').iterdir()] == ['1.0.0']
    assert 'train.part-7' not in files_below(tmp_path)


def test_an_interrupt_leaves_no_files(tmp_path, monkeypatch):
    make_tree(tmp_path / 'source')

    def interrupt(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(prepare_module.Progress, 'advance', interrupt)
    with pytest.raises(KeyboardInterrupt):
        prepare('ade20k_semantic', tmp_path / 'source', tmp_path / 'data', allow_partial=True)
    assert files_below(tmp_path / 'data') == []


def hold(folder, ready, done):
    with prepare_module._locked(folder):
        ready.set()
        done.wait(60)


def test_two_processes_cannot_prepare_one_data_set_at_once(tmp_path):
    make_tree(tmp_path / 'source')
    context = multiprocessing.get_context('spawn')
    ready, done = context.Event(), context.Event()
    other = context.Process(target=hold, args=(tmp_path / 'ade20k_semantic', ready, done))
    other.start()
    assert ready.wait(60)
    with pytest.raises(ValueError, match='is being prepared by another process'):
        prepare('ade20k_semantic', tmp_path / 'source', tmp_path, allow_partial=True)
    done.set()
    other.join()
    prepare('ade20k_semantic', tmp_path / 'source', tmp_path, allow_partial=True)


def test_a_folder_that_cannot_be_locked_gets_a_lease(tmp_path, monkeypatch):
    def refuse(*_):  # As on NFS, where only files open for writing can be locked.
        raise OSError(errno.EBADF, 'Bad file descriptor')

    monkeypatch.setattr(fcntl, 'flock', refuse)
    monkeypatch.setattr(lease, 'Lease', functools.partial(lease.Lease, seconds=1.2, settling=0.05))
    with prepare_module._locked(tmp_path / 'data'):
        with (
            pytest.raises(FileError, match='data is used by another process'),
            prepare_module._locked(tmp_path / 'data'),
        ):
            pass
        assert files_below(tmp_path / 'data') == [lease.NAME]
    assert files_below(tmp_path / 'data') == []


@pytest.mark.parametrize('allow_partial', [False, True])
def test_a_data_set_without_images_is_an_error(tmp_path, allow_partial):
    make_coco(tmp_path / 'source')
    path = tmp_path / 'source/annotations/panoptic_val2017.json'
    path.write_text(json.dumps(json.loads(path.read_text()) | {'annotations': []}))
    with pytest.raises(InputError, match='mine has no val images in the download; complete it'):
        prepare(
            'coco_panoptic', tmp_path / 'source', tmp_path, name='mine', allow_partial=allow_partial
        )


def test_a_disk_that_is_full_at_the_end_is_an_error(tmp_path, monkeypatch):
    def full(*_, **__):
        raise OSError(errno.ENOSPC, 'No space left on device')

    make_coco(tmp_path / 'source')
    monkeypatch.setattr(prepare_module.prepared, 'write_metadata', full)
    with pytest.raises(StorageError, match=r'mine/incomplete/.* \(No space left.*free some space'):
        prepare('coco_panoptic', tmp_path / 'source', tmp_path / 'data', name='mine')
    assert files_below(tmp_path / 'data') == []


def test_a_folder_that_cannot_be_created_is_an_error(tmp_path):
    make_tree(tmp_path / 'source')
    (tmp_path / 'data').touch()
    with pytest.raises(OSError, match='data/ade20k_semantic cannot be created.*--data_dir'):
        prepare('ade20k_semantic', tmp_path / 'source', tmp_path / 'data', allow_partial=True)


@pytest.mark.parametrize(
    ('kind', 'name', 'words'),
    [
        ('ade20k', 'mine', 'the name of ade20k is fixed'),
        ('coco_panoptic', 'My-Set', 'lower-case letters'),
    ],
)
def test_an_invalid_name_is_an_error(tmp_path, kind, name, words):
    with pytest.raises(ValueError, match=words):
        prepare(kind, tmp_path, tmp_path, name=name)


def test_the_command_imports_neither_torch_nor_tensorflow(tmp_path):
    make_tree(tmp_path / 'source')
    code = (
        'import sys; from simcis_jax.prepare import main;'
        f'main(["ade20k_semantic", "--source={tmp_path}/source", "--data_dir={tmp_path}",'
        '"--allow_partial"]); print({"torch", "tensorflow"} & set(sys.modules))'
    )
    output = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True)
    assert output.returncode == 0 and output.stdout.splitlines()[-1] == 'set()'
