"""Tests of how evaluation images are grouped into batches, loaded and padded."""

import numpy as np
import pytest

from simcis_jax import types
from simcis_jax.data import augment, shapes
from simcis_jax.data.evaluation_batches import describe, load_batches, plan_batches, share_of
from simcis_jax.data.source import Example


class Plain:
    """Images of given sizes; all pixels of image i have the value i + 1 and class 0."""

    name = 'plain'
    categories = types.Categories(('all',), (False,), ((0, 0, 0),))

    def __init__(self, *sizes):
        self._sizes = sizes

    def __getitem__(self, index):
        shape = self._sizes[index]
        return Example(
            np.full((*shape, 3), index + 1, np.uint8),
            np.ones(shape, np.int32),
            np.zeros(1, np.int32),
            np.zeros(1, bool),
            index,
        )


def plan(*sizes, **changes):
    settings = dict(batch_size=2, short_side=16, max_side=64, padding=8) | changes
    return plan_batches(sizes, range(len(sizes)), **settings)


def batches(*sizes, batch_size=2, num_threads=4, **changes):
    planned = plan(*sizes, batch_size=batch_size, **changes)
    return list(
        load_batches(Plain(*sizes), planned, batch_size=batch_size, num_threads=num_threads)
    )


def random_sizes(num_images):
    """Image sizes like those of photographs: many aspect ratios, shorter sides of 256 to 683."""
    rng = np.random.default_rng(0)
    short = rng.choice([512, 512, 683, *range(256, 512, 7)], num_images)
    long = np.round(short * np.exp(np.abs(rng.normal(0.28, 0.25, num_images)))).astype(int)
    sizes = np.stack([short, long], axis=1)
    portrait = rng.random(num_images) < 0.3
    sizes[portrait] = sizes[portrait, ::-1]
    return [tuple(size) for size in sizes.tolist()]


def test_batches_have_one_padded_shape_each():
    result = batches((16, 24), (24, 16), (32, 48), (17, 17), (24, 16))
    seen = [(batch.image.shape[1:3], len(batch.examples)) for batch in result]
    assert seen == [((16, 24), 2), ((24, 16), 2), ((16, 16), 1)]
    assert all(batch.image.shape[0] == 2 for batch in result)


def test_every_image_is_loaded_once_with_any_number_of_threads():
    sizes = [(16 + 4 * (k % 3), 16 + 4 * (k % 5)) for k in range(23)]
    for num_threads in (1, 5):
        result = batches(*sizes, batch_size=3, num_threads=num_threads)
        indices = [index for batch in result for index in batch.indices]
        assert sorted(indices) == list(range(23))
        assert indices == [example.image_id for batch in result for example in batch.examples]


def test_a_canvas_is_1_to_1_5_times_as_large_as_its_image():
    for batch in plan(*random_sizes(500), batch_size=1, short_side=640, max_side=2560, padding=32):
        for side, original in zip(batch.canvas, batch.original_sizes[0], strict=True):
            assert original <= side <= 1.5 * original


def test_many_image_sizes_give_few_shapes():
    sizes = random_sizes(3000)
    settings = dict(batch_size=8, short_side=640, max_side=2560, padding=32)
    planned = plan(*sizes, **settings)
    longer = {max(batch.padded) for batch in planned}
    assert {min(batch.padded) for batch in planned} == {640}
    # Each orientation has at most (2560 - 640) / 32 shapes; both share the square.
    assert len({batch.padded for batch in planned}) <= 2 * (2560 - 640) // 32 + 1
    assert max(longer) <= 2560
    assert len({batch.canvas for batch in planned}) <= 36  # At most six heights and six widths.
    coarse = plan(*sizes, **settings | {'padding': 128})
    assert len({batch.padded for batch in coarse}) < len({batch.padded for batch in planned}) / 2


def test_only_the_last_batch_of_a_padded_shape_is_incomplete():
    planned = plan(*random_sizes(400), batch_size=8, short_side=64, max_side=256, padding=32)
    for padded in {batch.padded for batch in planned}:
        *full, _ = [len(batch.indices) for batch in planned if batch.padded == padded]
        assert set(full) <= {8}


def test_describe_counts_images_and_shapes():
    sizes = [(480, 640)] * 5 + [(640, 480)] * 2 + [(100, 160)]
    planned = plan(*sizes, batch_size=4, short_side=64, max_side=256, padding=32)
    assert describe(planned) == '8 images, 3 network shapes, 3 output shapes'
    assert describe(planned[-1:]) == '2 images, 1 network shape, 1 output shape'


def test_ground_truth_keeps_its_original_size():
    (batch,) = batches((32, 40), (32, 40))
    np.testing.assert_array_equal(batch.original_size, [[32, 40], [32, 40]])
    np.testing.assert_array_equal(batch.size, [[16, 20], [16, 20]])
    assert [example.segment_map.shape for example in batch.examples] == [(32, 40), (32, 40)]


def test_padding_is_zero_at_the_bottom_and_right():
    (batch,) = batches((32, 40), (32, 40))
    assert batch.image.shape == (2, 16, 24, 3)
    assert (batch.image[0, :, :20] == 1).all() and (batch.image[1, :, :20] == 2).all()
    assert not batch.image[:, :, 20:].any()


def test_the_longer_side_is_limited():
    (batch,) = batches((20, 200), max_side=80)
    np.testing.assert_array_equal(batch.size[0], [8, 80])


def test_padding_rows_of_a_batch_are_empty():
    (batch,) = batches((16, 16), batch_size=3)
    assert len(batch.examples) == 1 and len(batch.image) == 3 and not batch.image[1:].any()
    np.testing.assert_array_equal(batch.size[1:], 1)


def test_images_are_resized_as_in_training():
    images = shapes.Shapes('val', size=48)
    planned = plan_batches(
        [images.size_of(3)], [3], batch_size=1, short_side=32, max_side=64, padding=32
    )
    (batch,) = load_batches(images, planned, batch_size=1)
    np.testing.assert_array_equal(batch.image[0], augment.resize_image(images[3].image, 32, 32))


def test_an_image_with_another_size_than_listed_is_an_error():
    planned = plan((16, 24))
    with pytest.raises(ValueError, match=r"Image 0 of 'plain' is 16x16 pixels and listed as 24x16"):
        list(load_batches(Plain((16, 16)), planned, batch_size=2))


def test_an_image_that_cannot_be_read_is_an_error():
    with pytest.raises(IndexError):
        list(load_batches(Plain((16, 16)), plan((16, 16), (16, 16)), batch_size=2))


@pytest.mark.parametrize('num_processes', [1, 2, 7])
def test_processes_share_all_batches_and_few_shapes(num_processes):
    planned = plan(*random_sizes(500), short_side=64, max_side=256, padding=32)
    shares = [share_of(planned, process, num_processes) for process in range(num_processes)]
    assert sum(shares, []) == planned
    shapes = [{batch.padded for batch in share} for share in shares]
    num_shapes = len({batch.padded for batch in planned})
    # Only the first shape of a process can be that of the process before.
    assert sum(map(len, shapes)) < num_shapes + num_processes
    pixels = [sum(np.prod(batch.padded) for batch in share) for share in shares]
    assert max(pixels) < 1.1 * min(pixels)
    assert share_of([], 0, num_processes) == []
