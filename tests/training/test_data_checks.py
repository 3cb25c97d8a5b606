"""Faults of a data set are found before training starts."""

import json

import cv2
import numpy as np
import pytest
from data.panoptic_tree import make_coco
from tiny import tiny_config

from simcis_jax import main
from simcis_jax.data import open_source
from simcis_jax.training import data_checks


@pytest.fixture
def folder(tmp_path):
    return make_coco(tmp_path / 'data', official=False)


def edit_json(folder, split, edit):
    path = folder / f'panoptic_{split}.json'
    content = json.loads(path.read_text())
    edit(content)
    path.write_text(json.dumps(content))


def open_splits(folder):
    return [open_source('coco_panoptic', split, root=str(folder)) for split in ('train', 'val')]


def run(folder, **changes):
    data = {'data.name': 'coco_panoptic', 'data.root': str(folder), 'protocol.base': 3}
    return main.run(tiny_config(**data | changes), str(folder / 'run'))


def test_a_valid_data_set_passes_without_output(folder, capsys):
    data_checks.check_files(open_splits(folder))
    assert capsys.readouterr().out == ''


def write_other_size(path):
    cv2.imwrite(str(path), np.zeros((9, 7, 3), np.uint8))


@pytest.mark.parametrize('split', ['train', 'val'])
@pytest.mark.parametrize('kind', ['images/{}/000000000010.jpg', 'panoptic_{}/000000000010.png'])
def test_a_file_with_another_size_than_listed_is_refused_before_training(folder, split, kind):
    path = folder / kind.format(split)
    write_other_size(path)
    with pytest.raises(ValueError) as error:
        run(folder)
    message = str(error.value)
    assert f'{path} is 7x9 pixels' in message and 'listed as 32x24' in message
    assert f'panoptic_{split}.json' in message and 'correct the list' in message
    assert not (folder / 'run').exists()


def test_all_faults_are_counted_and_the_first_is_named(folder):
    for split, number in (('train', 10), ('val', 9), ('val', 10)):
        (folder / f'images/{split}/{number:012}.jpg').unlink()
    with pytest.raises(ValueError, match='train/000000000010.jpg does not exist.* 2 more images'):
        data_checks.check_files(open_splits(folder))


def test_images_and_labels_of_a_semantic_folder_must_have_equal_sizes(tmp_path):
    for split in ('images/train', 'semantic_train'):
        (tmp_path / split).mkdir(parents=True)
    (tmp_path / 'categories.json').write_text('[{"id": 0, "name": "sky"}]')
    cv2.imwrite(str(tmp_path / 'semantic_train/a.png'), np.zeros((24, 32), np.uint8))
    cv2.imwrite(str(tmp_path / 'images/train/a.jpg'), np.zeros((24, 32, 3), np.uint8))
    source = open_source('semantic_folder', 'train', root=str(tmp_path))
    data_checks.check_files([source])
    write_other_size(tmp_path / 'images/train/a.jpg')
    with pytest.raises(ValueError, match='train/a.png is 32x24 and a.jpg is 7x9 pixels'):
        data_checks.check_files([source])


def test_a_validation_split_without_images_is_refused(folder):
    edit_json(folder, 'val', lambda content: content.update(images=[], annotations=[]))
    with pytest.raises(
        ValueError, match="None of the 0 images of 'panoptic_val' holds any classes"
    ):
        run(folder)
    assert not (folder / 'run').exists()


def test_instance_evaluation_alone_needs_a_thing_class(folder):
    def paint_stuff(content):
        for annotation in content['annotations']:
            for segment in annotation['segments_info']:
                segment.update(category_id=200, iscrowd=0)

    edit_json(folder, 'val', paint_stuff)
    _, validation = open_splits(folder)
    data_checks.check_scorable(validation, ('panoptic', 'instance'))
    with pytest.raises(ValueError, match="None of the 2 images of 'panoptic_val' holds any things"):
        data_checks.check_scorable(validation, ('instance',))


def test_classes_that_never_occur_are_named(folder):
    def rename(content, left):
        for annotation in content['annotations']:
            for segment in annotation['segments_info']:
                segment.update(category_id=left, iscrowd=0)

    edit_json(folder, 'train', lambda content: rename(content, 17))
    edit_json(folder, 'val', lambda content: rename(content, 1))
    assert data_checks.absent_classes(*open_splits(folder)) == [
        'warning: 2 of 3 classes never occur in panoptic_train and cannot be learned: '
        'person, rug-merged',
        'warning: 2 of 3 classes never occur in panoptic_val and are not scored: cat, rug-merged',
    ]


def test_images_whose_masks_need_much_memory_are_reported():
    class Photos:
        name = 'photos'
        sizes = ((480, 640), (3024, 4032))

        def __len__(self):
            return len(self.sizes)

        def size_of(self, index):
            return self.sizes[index]

    (line,) = data_checks.large_images(Photos(), num_queries=100, num_tasks=1)
    assert '4032x3024 pixels' in line and 'masks of 100 queries take about 9 GiB' in line
    assert not data_checks.large_images(Photos(), num_queries=20, num_tasks=1)


def test_validation_categories_that_contradict_training_are_refused(folder):
    edit_json(folder, 'val', lambda content: content['categories'][0].update(name='robot'))
    with pytest.raises(
        ValueError, match="category 1 is 'robot' .* and 'person' .* in the training"
    ):
        run(folder)
    assert not (folder / 'run').exists()
