from concurrent import futures

import cv2
import numpy as np
import pytest

from simcis_jax.evaluation import pictures
from simcis_jax.types import Categories

CATEGORIES = Categories(
    names=('sky', 'car', 'a very long name of a class'),
    is_thing=(False, True, True),
    colors=((0, 0, 250), (250, 0, 0), (0, 250, 0)),
)


def paint(segment_map, labels, shape=(600, 800), **kwargs):
    """The overlay of a grey image."""
    image = np.full((*shape, 3), 100, np.uint8)
    return pictures.overlay(image, segment_map, labels, CATEGORIES, **kwargs)


def two_cars():
    segment_map = np.zeros((600, 800), np.int32)
    segment_map[40:560, 40:380] = 1
    segment_map[40:560, 420:760] = 2
    return segment_map


def test_a_segment_is_a_blend_of_image_and_class_colour():
    segment_map = np.ones((600, 800), np.int32)
    picture = paint(segment_map, [0], alpha=0.6)
    np.testing.assert_array_equal(picture[10, 10], [40, 40, 190])


def test_pixels_without_a_segment_are_unchanged():
    picture = paint(two_cars(), [1, -1])
    np.testing.assert_array_equal(picture[5, 5], [100, 100, 100])
    np.testing.assert_array_equal(picture[60, 740], [100, 100, 100])


def test_things_of_one_class_differ_in_shade_and_stuff_does_not():
    cars = paint(two_cars(), [1, 1])
    skies = paint(two_cars(), [0, 0])
    assert np.any(cars[60, 60] != cars[60, 440])
    np.testing.assert_array_equal(skies[60, 60], skies[60, 440])


def test_segments_have_a_thin_bright_outline():
    across = paint(two_cars(), [0, 0])[400, 360:400, 0]  # The edge is at 380.
    assert across[19:21].min() > 150
    assert (across > 110).sum() <= 4


@pytest.mark.parametrize(
    ('shape', 'expected'),
    [
        ((64, 64), (512, 512)),
        ((600, 800), (600, 800)),
        ((3000, 4000), (1200, 1600)),
        ((7, 300), (37, 1600)),
    ],
)
def test_overlays_are_enlarged_or_shrunk_to_a_readable_size(shape, expected):
    picture = paint(np.ones(shape, np.uint8), [0], shape=shape)
    assert picture.shape == (*expected, 3)
    assert picture.dtype == np.uint8


def test_a_segment_much_smaller_than_its_name_gets_no_name(monkeypatch):
    segment_map = np.zeros((600, 800), np.int32)
    segment_map[100:106, 100:106] = 1
    picture = paint(segment_map, [2])
    monkeypatch.setattr(pictures, '_write_names', lambda *_: None)
    np.testing.assert_array_equal(picture, paint(segment_map, [2]))


def test_drawing_in_threads_gives_the_same_pictures():
    with futures.ThreadPoolExecutor(4) as pool:
        drawn = list(pool.map(lambda _: paint(two_cars(), [1, 0]), range(8)))
    for picture in drawn:
        np.testing.assert_array_equal(picture, drawn[0])


def test_an_empty_prediction_is_the_image():
    picture = paint(np.zeros((600, 800), np.int32), [])
    np.testing.assert_array_equal(picture, 100)


def test_image_and_segments_of_different_sizes_are_an_error():
    with pytest.raises(ValueError, match='one size'):
        paint(np.zeros((3, 3), np.int32), [])


def test_legend_lists_present_classes_in_the_order_of_the_data_set():
    assert pictures.legend([1, -1, 0, 1], CATEGORIES) == [
        ('sky', (0, 0, 250)),
        ('car', (250, 0, 0)),
    ]


def test_the_grid_shows_every_picture_and_legend_colour():
    colors = [(10 * row, 200, 10 * column) for row in range(2) for column in range(3)]
    cells = [np.full((40, 80, 3), color, np.uint8) for color in colors]
    legend = [('sky', (1, 2, 3)), ('car', (4, 5, 6))]
    picture = pictures.grid([cells[:3], cells[3:]], legend=legend, cell_width=120)
    for color in colors:
        assert np.all(picture == color, axis=-1).sum() == 120 * 60
    for _, color in legend:
        assert np.all(picture == color, axis=-1).any()
    assert picture.shape[1] == 3 * 120 + 4 * 12


def test_a_long_legend_wraps_and_stays_inside():
    cells = [np.zeros((40, 80, 3), np.uint8)] * 3
    legend = [(f'class number {k}', (200, 0, k)) for k in range(40)]
    picture = pictures.grid([cells], legend=legend, cell_width=120)
    for _, color in legend:
        assert np.all(picture == color, axis=-1).any()
    assert (picture[:, -1] == 255).all()


def test_a_row_without_one_picture_per_title_is_an_error():
    with pytest.raises(ValueError, match='Row 0 of the grid has 2 pictures for the 3 titles'):
        pictures.grid([[np.zeros((4, 4, 3), np.uint8)] * 2])


def test_png_keeps_every_pixel(tmp_path):
    picture = np.random.default_rng(0).integers(0, 256, (5, 7, 3)).astype(np.uint8)
    pictures.write_png(tmp_path / 'a.png', picture)
    read = cv2.cvtColor(cv2.imread(str(tmp_path / 'a.png')), cv2.COLOR_BGR2RGB)
    np.testing.assert_array_equal(read, picture)


def test_writing_to_a_missing_folder_is_an_error(tmp_path):
    with pytest.raises(OSError, match='missing'):
        pictures.write_png(tmp_path / 'missing' / 'a.png', np.zeros((2, 2, 3), np.uint8))
