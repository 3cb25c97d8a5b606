"""Tests of augmentation and training targets."""

import colorsys

import cv2
import numpy as np
import pytest

from simcis_jax.data import augment
from simcis_jax.data.source import Example


def make_example(segment_map, labels, crowd=None, image=None):
    segment_map = np.asarray(segment_map, np.int32)
    if image is None:
        image = np.zeros((*segment_map.shape, 3), np.uint8)
    crowd = np.zeros(len(labels), bool) if crowd is None else np.asarray(crowd)
    return Example(image, segment_map, np.asarray(labels, np.int32), crowd, 'picture')


def coordinates(height, width):
    """An image with red = row and green = column, and a map with one segment per pixel."""
    rows, columns = np.mgrid[:height, :width]
    image = np.stack([rows, columns, 0 * rows], axis=-1).astype(np.uint8)
    return make_example(1 + rows * width + columns, np.zeros(height * width), image=image)


def loop_boxes(segment_map, num_segments):
    """Computes boxes by a loop over pixels."""
    height, width = segment_map.shape
    boxes = np.zeros((num_segments, 4))
    for k in range(1, num_segments + 1):
        cells = [(y, x) for y in range(height) for x in range(width) if segment_map[y, x] == k]
        if cells:
            top, left = min(y for y, _ in cells), min(x for _, x in cells)
            bottom, right = max(y for y, _ in cells) + 1, max(x for _, x in cells) + 1
            boxes[k - 1] = [
                (left + right) / 2 / width, (top + bottom) / 2 / height,
                (right - left) / width, (bottom - top) / height,
            ]  # fmt: skip
    return boxes


def clipped(values):
    return np.clip(values, 0, 255).astype(np.uint8)


def test_targets_of_a_small_map():
    segment_map = np.zeros((8, 8))
    segment_map[0:2, 0:4] = 1
    segment_map[4:8, 4:8] = 2
    segment_map[7, 0] = 3
    targets = augment.to_targets(make_example(segment_map, [5, 6, 5]), {5}, max_segments=4)
    np.testing.assert_array_equal(targets.labels, [5, 5, -1, -1])
    np.testing.assert_array_equal(targets.segment_map[0], [1, 1, 1, 1, 0, 0, 0, 0])
    np.testing.assert_array_equal(targets.segment_map[7], [2, 0, 0, 0, 0, 0, 0, 0])
    np.testing.assert_array_equal(targets.boxes[0], [0.25, 0.125, 0.5, 0.25])
    np.testing.assert_array_equal(targets.boxes[1], [0.0625, 0.9375, 0.125, 0.125])
    assert targets.dropped == 0 and not targets.boxes[2:].any()


def test_boxes_match_a_loop_over_pixels():
    segment_map = np.random.default_rng(0).integers(0, 7, (9, 13)) * (np.arange(13) > 3)
    targets = augment.to_targets(make_example(segment_map, range(6)), range(6), max_segments=6)
    np.testing.assert_allclose(targets.boxes, loop_boxes(segment_map, 6), rtol=1e-6)


def test_crowds_and_other_classes_become_void():
    example = make_example([[1, 2, 3]], [0, 1, 0], crowd=[False, False, True])
    targets = augment.to_targets(example, [0], max_segments=3)
    np.testing.assert_array_equal(targets.segment_map, [[1, 0, 0]])
    np.testing.assert_array_equal(targets.labels, [0, -1, -1])


def test_the_largest_segments_are_kept():
    example = make_example([[1, 2, 2, 3, 3, 3, 4]], [7, 8, 9, 6])
    targets = augment.to_targets(example, range(10), max_segments=2)
    np.testing.assert_array_equal(targets.segment_map, [[0, 1, 1, 2, 2, 2, 0]])
    np.testing.assert_array_equal(targets.labels, [8, 9])
    assert targets.dropped == 2


def test_segments_outside_the_crop_are_dropped():
    targets = augment.to_targets(make_example([[2, 2]], [4, 5]), range(6), max_segments=2)
    np.testing.assert_array_equal(targets.labels, [5, -1])
    np.testing.assert_array_equal(targets.segment_map, [[1, 1]])


def test_keep_empty_keeps_segments_outside_the_crop():
    example = make_example([[2, 2]], [4, 5])
    targets = augment.to_targets(example, range(6), max_segments=3, keep_empty=True)
    np.testing.assert_array_equal(targets.labels, [4, 5, -1])
    np.testing.assert_array_equal(targets.segment_map, [[2, 2]])
    np.testing.assert_array_equal(targets.boxes[:2], [[0, 0, 0, 0], [0.5, 0.5, 1, 1]])


def test_an_image_without_targets_is_all_padding():
    targets = augment.to_targets(make_example([[0, 1]], [3]), [0], max_segments=2)
    assert (targets.labels == -1).all() and not targets.segment_map.any() and targets.dropped == 0


@pytest.mark.parametrize(('max_segments', 'dtype'), [(255, np.uint8), (256, np.int32)])
def test_the_segment_map_has_the_smallest_type_that_fits(max_segments, dtype):
    targets = augment.to_targets(make_example([[1]], [0]), [0], max_segments=max_segments)
    assert targets.segment_map.dtype == dtype and targets.boxes.dtype == np.float32


def test_flip_mirrors_image_and_map():
    flipped = augment.flip(coordinates(3, 5))
    np.testing.assert_array_equal(flipped.image[0, :, 1], [4, 3, 2, 1, 0])
    np.testing.assert_array_equal(flipped.segment_map[0], [5, 4, 3, 2, 1])


def test_a_crop_without_scaling_is_a_window_of_the_image():
    example = coordinates(12, 9)
    corners = set()
    for seed in range(40):
        crop = augment.scale_jitter_and_crop(
            example, np.random.default_rng(seed), size=8, scale_range=(1.0, 1.0)
        )
        top, left = crop.image[0, 0, :2].astype(int)
        np.testing.assert_array_equal(crop.image, example.image[top : top + 8, left : left + 8])
        np.testing.assert_array_equal(
            crop.segment_map, example.segment_map[top : top + 8, left : left + 8]
        )
        corners.add((top, left))
    assert {top for top, _ in corners} == {0, 1, 2, 3, 4} and {left for _, left in corners} == {
        0,
        1,
    }


def test_an_image_smaller_than_the_crop_is_an_error_without_scaling():
    with pytest.raises(ValueError, match="'picture' is 9x4 pixels.*8x8 crop.*scale_range"):
        augment.scale_jitter_and_crop(
            coordinates(4, 9), np.random.default_rng(0), size=8, scale_range=(1.0, 1.0)
        )


def test_the_scales_are_the_published_ones(monkeypatch):
    sides = set()
    original = augment.resized_shape

    def spy(height, width, *, short_side, max_side):
        sides.add(short_side)
        assert max_side == 2048
        return original(height, width, short_side=8, max_side=99)

    monkeypatch.setattr(augment, 'resized_shape', spy)
    rng = np.random.default_rng(0)
    for _ in range(300):
        augment.scale_jitter_and_crop(coordinates(8, 8), rng, size=512)
    published = [256, 307, 358, 409, 460, 512, 563, 614, 665, 716, 768, 819, 870, 921, 972, 1024]
    assert sorted(sides) == published


def test_image_and_map_are_resized_consistently():
    # Scaled by two: the id in the map and the colour in the image give the same position.
    rng = np.random.default_rng(1)
    example = coordinates(6, 10)
    crop = augment.scale_jitter_and_crop(example, rng, size=6, scale_range=(2.0, 2.0))
    rows, columns = np.divmod(crop.segment_map - 1, 10)
    assert np.abs(crop.image[..., 0] - rows.astype(float)).max() <= 0.5
    assert np.abs(crop.image[..., 1] - columns.astype(float)).max() <= 0.5


def test_the_map_is_sampled_at_pixel_centres():
    example = make_example([[1, 2, 3, 4]] * 4, [0] * 4)
    crop = augment.scale_jitter_and_crop(
        example, np.random.default_rng(0), size=4, scale_range=(0.5, 0.5)
    )
    np.testing.assert_array_equal(crop.segment_map, [[2, 4], [2, 4]])


@pytest.mark.parametrize('shape', [(7, 9), (13, 20), (31, 41)])
@pytest.mark.parametrize(('num_segments', 'dtype'), [(255, np.uint8), (256, np.int32)])
def test_a_crop_is_a_window_of_the_whole_resized_example(shape, num_segments, dtype):
    rng = np.random.default_rng(0)
    segment_map = rng.integers(num_segments - 50, num_segments + 1, (13, 20))
    image = rng.integers(0, 256, (13, 20, 3), np.uint8)
    example = make_example(segment_map, [0] * num_segments, image=image)
    whole = augment.resized_crop(example, shape, (0, 0), shape)
    crop = augment.resized_crop(example, shape, (2, 3), (4, 5))
    np.testing.assert_array_equal(crop.image, augment.resize_image(image, *shape)[2:6, 3:8])
    np.testing.assert_array_equal(crop.segment_map, whole.segment_map[2:6, 3:8])
    assert crop.segment_map.dtype == dtype and crop.image.base is None


def test_the_longer_side_is_limited():
    assert augment.resized_shape(100, 400, short_side=640, max_side=1280) == (320, 1280)
    assert augment.resized_shape(375, 500, short_side=640, max_side=2560) == (640, 853)


def test_shrinking_averages_instead_of_aliasing():
    stripes = np.zeros((8, 8, 3), np.uint8)
    stripes[::4] = 200
    assert (augment.resize_image(stripes, 2, 2) == 50).all()


def test_padding_is_grey_and_void_at_the_bottom_and_right():
    padded = augment.pad(coordinates(2, 3), size=4)
    np.testing.assert_array_equal(padded.image[..., 2], 
        [[0, 0, 0, 128], [0, 0, 0, 128], [128] * 4, [128] * 4])  # fmt: skip
    np.testing.assert_array_equal(padded.segment_map,
        [[1, 2, 3, 0], [4, 5, 6, 0], [0] * 4, [0] * 4])  # fmt: skip


def test_padding_is_not_augmented():
    example = coordinates(40, 60)
    seen_flip = False
    for seed in range(20):
        out = augment.augment(example, np.random.default_rng(seed), size=64, scale_range=(0.5, 0.5))
        height, width = 32, 48
        assert (out.image[height:] == 128).all() and (out.image[:, width:] == 128).all()
        assert (out.segment_map[:height, :width] > 0).all()
        seen_flip |= out.segment_map[0, 0] > out.segment_map[0, 1]
    assert seen_flip


def test_colour_distortion_leaves_the_map_alone_and_the_image_within_ssd_limits():
    grey = make_example([[1, 1]], [0], image=np.full((1, 2, 3), 100, np.uint8))
    values = []
    rng = np.random.default_rng(0)
    for _ in range(1000):
        out = augment.ssd_color(grey, rng)
        assert out.segment_map is grey.segment_map
        assert np.ptp(out.image) == 0  # Grey has neither hue nor saturation.
        values.append(int(out.image[0, 0, 0]))
    # (100 +- 32) x 0.5..1.5; a quarter of the draws change neither brightness nor contrast.
    assert 34 <= min(values) < 50 and 150 < max(values) <= 198
    assert 0.15 < np.mean(np.array(values) == 100) < 0.35


def test_colour_distortion_equals_its_steps_pixel_by_pixel():
    rng = np.random.default_rng(0)
    image = rng.integers(0, 256, (8, 9, 3), np.uint8)
    image.flags.writeable = False
    for seed in range(64):
        rng = np.random.default_rng(seed)
        brightness, contrast, saturation, hue, contrast_first = rng.random(5) < 0.5
        shift, gain = rng.uniform(-32, 32), rng.uniform(0.5, 1.5)
        saturation_gain, turn = rng.uniform(0.5, 1.5), rng.integers(-18, 18)
        expected = image
        if brightness:
            expected = clipped(np.float32(expected) + shift)
        if contrast and contrast_first:
            expected = clipped(np.float32(expected) * gain)
        if saturation or hue:
            hsv = np.float32(cv2.cvtColor(expected, cv2.COLOR_RGB2HSV))
            if hue:
                hsv[..., 0] = (hsv[..., 0] + turn) % 180
            if saturation:
                hsv[..., 1] *= saturation_gain
            expected = cv2.cvtColor(clipped(hsv), cv2.COLOR_HSV2RGB)
        if contrast and not contrast_first:
            expected = clipped(np.float32(expected) * gain)
        out = augment.ssd_color(make_example([[1]], [0], image=image), np.random.default_rng(seed))
        np.testing.assert_array_equal(out.image, expected)


def test_hue_changes_by_at_most_36_degrees():
    red = make_example([[1]], [0], image=np.array([[[200, 20, 20]]], np.uint8))
    hues = []
    for seed in range(300):
        pixel = augment.ssd_color(red, np.random.default_rng(seed)).image[0, 0] / 255
        hues.append((colorsys.rgb_to_hsv(*pixel)[0] * 360 + 180) % 360 - 180)
    assert -39 < min(hues) < -25 and 25 < max(hues) < 39


def test_augmentation_depends_only_on_the_generator():
    example = coordinates(20, 30)
    first, second, other = (
        augment.augment(example, np.random.default_rng(seed), size=16).image for seed in (1, 1, 2)
    )
    assert np.array_equal(first, second) and not np.array_equal(first, other)


def test_augmentation_does_not_modify_its_example():
    example = coordinates(20, 30)
    example.image.flags.writeable = example.segment_map.flags.writeable = False
    augment.augment(example, np.random.default_rng(0), size=16)
