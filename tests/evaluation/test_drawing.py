import itertools

import numpy as np
import pytest

from simcis_jax.evaluation import drawing
from simcis_jax.evaluation.drawing import Box


def random_segment_map(rng):
    """Regions around random points, some of them empty, and the sizes of their names."""
    height, width, count = rng.integers(1, 300, 2).tolist() + [rng.integers(1, 40)]
    points = rng.uniform(0, (height, width), (count, 2))
    pixels = np.mgrid[:height, :width][:, None]  # [2, 1, H, W]
    squares = (pixels - points.T[..., None, None]) ** 2
    segment_map = squares.sum(axis=0).argmin(axis=0) + 1
    segment_map[segment_map % 5 == 0] = 0
    return segment_map, [(int(rng.integers(5, 90)), int(rng.integers(5, 30))) for _ in points]


@pytest.mark.parametrize('seed', range(60))
def test_names_lie_in_their_segments_and_never_touch(seed):
    segment_map, sizes = random_segment_map(np.random.default_rng(seed))
    height, width = segment_map.shape
    boxes = drawing.name_boxes(segment_map, sizes)
    for segment, box in boxes.items():
        assert (box.width, box.height) == sizes[segment - 1]
        assert box.left >= 0 and box.left + box.width <= width
        assert box.top >= 0 and box.top + box.height <= height
        area = segment_map[box.top : box.top + box.height, box.left : box.left + box.width]
        assert (area == segment).mean() >= 0.6 - 1e-6
    for a, b in itertools.combinations(boxes.values(), 2):
        beside = a.left + a.width <= b.left or b.left + b.width <= a.left
        assert beside or a.top + a.height <= b.top or b.top + b.height <= a.top


def test_a_name_is_centred_in_its_segment():
    segment_map = np.zeros((90, 200), np.int32)
    segment_map[20:71, 40:141] = 1
    boxes = drawing.name_boxes(segment_map, [(31, 11)])
    assert boxes[1].top + 5 == 45 and 40 < boxes[1].left < 110


def test_a_name_moves_away_from_that_of_a_larger_segment():
    segment_map = np.ones((100, 300), np.int32)
    segment_map[30:70, 100:200] = 2  # The middle of segment 1.
    boxes = drawing.name_boxes(segment_map, [(60, 20), (60, 20)])
    assert set(boxes) == {1, 2}
    assert boxes[1].left + 60 <= 100 or boxes[1].left >= 200


def test_the_larger_segment_gets_the_only_room_for_a_name():
    segment_map = np.ones((24, 60), np.int32)
    segment_map[:, 35:] = 2
    assert set(drawing.name_boxes(segment_map, [(40, 20), (40, 20)])) <= {1}


def luminance(color):
    """Relative luminance by the definition of WCAG 2, one channel at a time."""
    total = 0.0
    for value, weight in zip(color, (0.2126, 0.7152, 0.0722), strict=True):
        value /= 255
        total += weight * (value / 12.92 if value <= 0.04045 else ((value + 0.055) / 1.055) ** 2.4)
    return total


def test_text_contrasts_with_every_colour():
    for background in itertools.product(range(0, 256, 15), repeat=3):
        levels = sorted(luminance(c) + 0.05 for c in (background, drawing.text_color(background)))
        assert levels[1] / levels[0] >= 4.5, background


@pytest.mark.parametrize(('line_width', 'scale'), [(1.2, 1), (1.2, 4), (3.2, 1), (3.2, 0.3)])
def test_outlines_follow_edges_and_fade_out(line_width, scale):
    segment_map = np.zeros((80, 120), np.int32)
    segment_map[20:, 60:] = 3
    sigma = max(scale / 2, 0.55 * line_width + 0.45)  # As in `pictures.overlay`.
    smooth, lines = drawing.outlined(segment_map, sigma, line_width)
    np.testing.assert_array_equal(smooth[:, :50], 0)
    np.testing.assert_array_equal(smooth[50], segment_map[50])
    np.testing.assert_allclose(lines[50, 59:61], min(1, line_width / 2), atol=0.01)
    assert lines[50].sum() == pytest.approx(line_width, rel=0.2)
    np.testing.assert_array_equal(lines[50, :54], 0)
    np.testing.assert_array_equal(lines[50, 66:], 0)
    np.testing.assert_array_equal(lines[:10], 0)


def test_jagged_edges_become_smooth():
    steps = np.arange(160) // 4 * 4  # A diagonal in steps of 4 pixels.
    segment_map = (np.arange(160)[:, None] < steps).astype(np.int32)
    smooth, _ = drawing.outlined(segment_map, 4.0, 1.2)
    edge = smooth[:, 40:120].sum(axis=0)
    assert np.abs(np.diff(edge, n=2)).max() <= 1  # Never a step of 4.


def test_text_in_any_script_fits_its_width():
    for text in ('sky', 'Straße', 'небо', '天空'):
        width = drawing.text_width(text, 20)
        picture = np.zeros((40, width + 40, 3), np.uint8)
        drawing.write(picture, text, Box(20, 0, width, 40), 20, (255, 255, 255))
        columns = np.flatnonzero(picture.any(axis=(0, 2)))
        assert width / 2 < columns[-1] - columns[0] <= width + 1
        rows = np.flatnonzero(picture.any(axis=(1, 2)))
        assert 5 < rows[0] and rows[-1] < 35
