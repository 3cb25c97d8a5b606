"""AP of instances, on cases worked out by hand and against plain loops."""

import numpy as np
import pytest
from pycocotools import mask as coco

from simcis_jax.evaluation.average_precision import Instances, average_precision

SHAPE = (10, 20)
THRESHOLDS = np.arange(0.5, 1.0, 0.05)


def bar(length, row=0, start=0):
    """A mask of `length` pixels in one row."""
    mask = np.zeros(SHAPE, bool)
    mask[row, start : start + length] = True
    return mask


def encoded(masks, labels, scores=None, crowd=None):
    """Instances of masks [n, H, W]."""
    return Instances(
        masks=[coco.encode(np.asfortranarray(mask, np.uint8)) for mask in masks],
        labels=np.asarray(labels),
        scores=np.zeros(len(labels)) if scores is None else np.asarray(scores),
        crowd=np.zeros(len(labels), bool) if crowd is None else np.asarray(crowd, bool),
    )


def image(found, true):
    """An image of found (mask, label, score) and true (mask, label[, crowd]) instances."""
    masks = [np.array([row[0] for row in rows]).reshape(-1, *SHAPE) for rows in (found, true)]
    return (
        encoded(masks[0], [row[1] for row in found], scores=[row[2] for row in found]),
        encoded(masks[1], [row[1] for row in true], crowd=[len(row) > 2 for row in true]),
    )


def scores(*images, num_classes=1):
    # The library divides by a little more than it should.
    result = average_precision(images, num_classes)
    return {name: value.round(9).tolist() for name, value in result.items()}


def test_a_perfect_prediction_scores_100():
    assert scores(image([(bar(10), 0, 0.9)], [(bar(10), 0)])) == {
        'ap': [100],
        'ap50': [100],
        'ap75': [100],
    }


def test_an_iou_of_eight_elevenths_counts_at_the_five_thresholds_below():
    result = scores(image([(bar(8), 0, 0.9)], [(bar(11), 0)]))
    assert result == {'ap': [50], 'ap50': [100], 'ap75': [0]}


def test_one_of_two_found_covers_half_of_the_recalls():
    # Of the 101 recalls 0.00, 0.01, .. 1.00, those up to 0.50 are reached with precision 1.
    result = scores(image([(bar(10), 0, 0.9)], [(bar(10), 0), (bar(10, row=5), 0)]))
    assert result['ap'] == pytest.approx([100 * 51 / 101])


def test_a_wrong_instance_ahead_of_the_right_one_halves_the_precision():
    found = [(bar(5, row=9), 0, 0.9), (bar(10), 0, 0.8)]
    assert scores(image(found, [(bar(10), 0)]))['ap'] == [50]
    found[0] = (*found[0][:2], 0.1)
    assert scores(image(found, [(bar(10), 0)]))['ap'] == [100]


def test_crowd_is_neither_missed_nor_wrong():
    true = [(bar(10), 0), (bar(20, row=3), 0, 'crowd')]
    found = [(bar(8, row=3), 0, 0.9), (bar(8, row=3, start=9), 0, 0.9), (bar(10), 0, 0.8)]
    assert scores(image(found, true))['ap'] == [100]


def test_classes_without_a_true_instance_have_no_score():
    found = [(bar(10), 0, 0.9), (bar(10, row=2), 1, 0.9)]
    true = [(bar(10), 0), (bar(10, row=4), 2), (bar(9, row=8), 3, 'crowd')]
    result = scores(image(found, true), num_classes=4)
    np.testing.assert_array_equal(result['ap'], [100, np.nan, 0, np.nan])
    assert np.isnan(scores(num_classes=2)['ap50']).all()
    assert np.isnan(scores(image(found, []), num_classes=2)['ap']).all()


def test_no_prediction_at_all_scores_zero():
    assert scores(image([], [(bar(10), 0)]))['ap'] == [0]


def ap_by_loops(images, label, threshold):
    """AP in percent of one class at one IoU threshold: ranked, matched greedily, interpolated."""
    ranked = sorted(
        (-score, number, mask)
        for number, (found, _) in enumerate(images)
        for mask, found_label, score in found
        if found_label == label
    )
    true = {n: [m for m, t in image[1] if t == label] for n, image in enumerate(images)}
    num_true, hits, points = sum(map(len, true.values())), 0, []
    for rank, (_, number, mask) in enumerate(ranked, start=1):
        overlaps = [(mask & other).sum() / (mask | other).sum() for other in true[number]]
        if overlaps and max(overlaps) >= threshold:
            del true[number][int(np.argmax(overlaps))]
            hits += 1
        points.append((hits / num_true, hits / rank))
    recalls = np.arange(101) / 100
    return 100 * np.mean([max([p for r, p in points if r >= x], default=0) for x in recalls])


@pytest.mark.parametrize('seed', range(3))
def test_ap_equals_plain_loops(seed):
    rng = np.random.default_rng(seed)
    images = []
    for _ in range(6):
        # An instance overlaps one true instance at most, and no IoU lies on a threshold.
        true = [(bar(11, row=row), int(rng.integers(2))) for row in range(0, 10, 2)]
        found = [
            (bar(int(rng.integers(4, 13)), row=row), int(rng.integers(2)), float(rng.random()))
            for row in rng.permutation(10)[:7]
        ]
        images.append((found, true))
    result = average_precision([image(*part) for part in images], 2)
    for label in range(2):
        expected = [ap_by_loops(images, label, t) for t in THRESHOLDS]
        assert result['ap50'][label] == pytest.approx(expected[0])
        assert result['ap75'][label] == pytest.approx(expected[5])
        assert result['ap'][label] == pytest.approx(np.mean(expected))


def test_ap_of_an_image_with_more_instances_than_a_byte_counts():
    # Bars of three pixels, of which 300 are found: with 2 or 3 of the pixels, or in a wrong place.
    rng = np.random.default_rng(0)
    rows, columns = np.unravel_index(np.arange(349), (10, 35))
    masks = np.zeros((349, 10, 140), bool)
    for mask, row, column in zip(masks, rows, columns, strict=True):
        mask[row, 4 * column : 4 * column + 3] = True
    labels = rng.integers(0, 4, 349)
    chosen = rng.permutation(349)[:300]
    found = masks[chosen]
    found[:150, :, 2::4] = False
    found[250:] = np.roll(found[250:], 2, axis=2)
    confidence = rng.random(300)
    assert np.bincount(labels[chosen]).max() <= 100
    result = average_precision(
        [(encoded(found, labels[chosen], scores=confidence), encoded(masks, labels))], 4
    )
    rows = (
        list(zip(found, labels[chosen], confidence, strict=True)),
        list(zip(masks, labels, strict=True)),
    )
    for label in range(4):
        expected = [ap_by_loops([rows], label, threshold) for threshold in THRESHOLDS]
        assert 0 < expected[5] < expected[0] < 100
        assert result['ap50'][label] == pytest.approx(expected[0])
        assert result['ap75'][label] == pytest.approx(expected[5])
        assert result['ap'][label] == pytest.approx(np.mean(expected))
