"""Images and labels of each stage, in all three settings."""

import numpy as np
import pytest

from simcis_jax.continual.class_orders import published_orders
from simcis_jax.continual.protocol import SETTINGS, labelled_classes, stage_images
from simcis_jax.continual.stages import make_stages
from simcis_jax.data import augment
from simcis_jax.data.source import Example

CLASSES = 12


@pytest.fixture(scope='module')
def image_classes():
    rng = np.random.default_rng(0)
    sizes = rng.integers(0, 5, 300)  # Some images have no classes.
    return [frozenset(rng.choice(CLASSES, size, replace=False).tolist()) for size in sizes]


@pytest.fixture(params=['origin', 'descending', (3, 1, 4, 0, 5, 9, 2, 6, 8, 7, 10, 11)])
def stages(request):
    return make_stages(CLASSES, base=6, increment=2, order=request.param)


def test_overlapped_images_are_in_every_stage_of_their_classes(image_classes, stages):
    lists = [set(stage_images(image_classes, stage).tolist()) for stage in stages]
    for index, classes in enumerate(image_classes):
        expected = {s.index for s in stages for label in classes if label in s.current}
        assert {t for t, images in enumerate(lists) if index in images} == expected


@pytest.mark.parametrize('setting', ['disjoint', 'sequential'])
def test_disjoint_and_sequential_images_are_in_the_last_stage_of_their_classes_only(
    image_classes, stages, setting
):
    lists = [stage_images(image_classes, stage, setting).tolist() for stage in stages]
    arrival = {label: stage.index for stage in stages for label in stage.current}
    everywhere = sorted(index for images in lists for index in images)
    assert everywhere == [index for index, classes in enumerate(image_classes) if classes]
    for t, images in enumerate(lists):
        assert all(max(arrival[label] for label in image_classes[i]) == t for i in images)
        assert images == sorted(images)


@pytest.mark.parametrize('setting', SETTINGS)
def test_targets_have_the_labelled_classes_of_the_stage_only(image_classes, stages, setting):
    rng = np.random.default_rng(1)
    for stage in stages:
        labelled = set(labelled_classes(stage, setting))
        assert labelled == set(stage.seen if setting == 'sequential' else stage.current)
        for index in stage_images(image_classes, stage, setting)[:20]:
            labels = np.array(sorted(image_classes[index]), np.int32)
            segment_map = rng.integers(0, len(labels) + 1, (8, 8)).astype(np.int32)
            segment_map[0, : len(labels)] = np.arange(len(labels)) + 1  # Each segment has a pixel.
            example = Example(
                np.zeros((8, 8, 3), np.uint8), segment_map, labels, np.zeros(len(labels), bool), 0
            )
            targets = augment.to_targets(example, labelled, max_segments=CLASSES)
            found = targets.labels[targets.labels >= 0].tolist()
            assert sorted(found) == [label for label in labels.tolist() if label in labelled]
            # Pixels of other classes are void.
            expected = np.isin(np.append(labels, -1)[segment_map - 1], sorted(labelled))
            np.testing.assert_array_equal(targets.segment_map > 0, expected)


def test_the_published_orders_are_different_permutations_of_all_classes():
    orders = published_orders()
    assert list(orders) == [*(f'ade20k_{k}' for k in [*range(1, 11), *'bcdefghij']), 'coco_c']
    for name, order in orders.items():
        assert sorted(order) == list(range(150 if name.startswith('ade20k') else 133))
    assert len(set(orders.values())) == len(orders)
    assert make_stages(150, base=100, increment=10, order='ade20k_1')[0].current[:3] == (71, 135, 3)
    assert orders['ade20k_1'][-1] == 34 and orders['ade20k_10'] == tuple(range(149, -1, -1))
    assert orders['ade20k_b'][:3] == (73, 18, 118) and orders['coco_c'][:3] == (0, 2, 9)


def test_an_order_of_another_data_set_is_an_error():
    with pytest.raises(ValueError, match='permutation of the 12 labels'):
        make_stages(CLASSES, base=6, increment=2, order='ade20k_1')
