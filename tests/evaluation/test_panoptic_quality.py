from pathlib import Path

import numpy as np
import pytest

from simcis_jax.evaluation import panoptic_quality
from simcis_jax.evaluation.overlap import overlap_table
from simcis_jax.evaluation.panoptic_quality import PQCounts, pq_scores

GOLDEN = Path(__file__).parent / 'golden' / 'metrics_pq.npz'


def count(pred_map, pred_labels, gt_map, gt_labels, *arguments, **settings):
    overlap = overlap_table(pred_map, len(pred_labels), gt_map, len(gt_labels))
    return panoptic_quality.count(overlap, pred_labels, gt_labels, *arguments, **settings)


def coco_panoptic_counts(pred, pred_segments, gt, gt_segments, num_classes):
    """The algorithm of the COCO panoptic API on sets of pixels.

    `pred_segments` is {id: class}, `gt_segments` {id: (class, is_crowd)}; an id of `gt` that is
    not listed is neither void (0) nor a segment.
    """

    def pixels(segment_map, segment):
        return {tuple(pixel) for pixel in np.argwhere(segment_map == segment)}

    tp, fp, fn = (np.zeros(num_classes, int) for _ in range(3))
    iou_sum = np.zeros(num_classes)
    void = pixels(gt, 0)
    gt_matched, pred_matched, crowd = set(), set(), {}
    for g, (gt_class, is_crowd) in gt_segments.items():
        for p, pred_class in pred_segments.items():
            if is_crowd or gt_class != pred_class:
                continue
            g_pixels, p_pixels = pixels(gt, g), pixels(pred, p)
            common = len(g_pixels & p_pixels)
            if not common:
                continue
            value = common / (len(g_pixels) + len(p_pixels) - common - len(p_pixels & void))
            if value > 0.5:
                tp[gt_class] += 1
                iou_sum[gt_class] += value
                gt_matched.add(g)
                pred_matched.add(p)
    for g, (gt_class, is_crowd) in gt_segments.items():
        if g in gt_matched:
            continue
        if is_crowd:
            crowd[gt_class] = g
            continue
        fn[gt_class] += 1
    for p, pred_class in pred_segments.items():
        p_pixels = pixels(pred, p)
        if p in pred_matched or not p_pixels:
            continue
        ignored = len(p_pixels & void)
        if pred_class in crowd:
            ignored += len(p_pixels & pixels(gt, crowd[pred_class]))
        if ignored / len(p_pixels) > 0.5:
            continue
        fp[pred_class] += 1
    return tp, fp, fn, iou_sum


def assert_counts(counts, expected):
    for mine, theirs in zip((counts.tp, counts.fp, counts.fn), expected[:3], strict=True):
        np.testing.assert_array_equal(mine, theirs)
    np.testing.assert_allclose(counts.iou, expected[3], rtol=0, atol=1e-6)


def random_pair(rng, num_classes):
    """Overlapping rectangles; the prediction is a perturbed ground truth."""
    shape = rng.integers(6, 12, 2)
    gt, gt_labels = np.zeros(shape, int), []
    for _ in range(rng.integers(0, 7)):
        top, left = rng.integers(0, shape)
        bottom, right = rng.integers((top, left), shape) + 1
        gt_labels.append(int(rng.integers(num_classes)))
        gt[top:bottom, left:right] = len(gt_labels)
    pred = np.where(rng.random(shape) < rng.uniform(0, 0.4), 0, gt)
    pred_labels = [
        label if rng.random() < 0.8 else int(rng.integers(num_classes)) for label in gt_labels
    ]
    for _ in range(rng.integers(0, 3)):
        top, left = rng.integers(0, shape)
        pred_labels.append(int(rng.integers(num_classes)))
        pred[top : top + 4, left : left + 4] = len(pred_labels)
    gt[rng.random(shape) < rng.uniform(0, 0.3)] = 0
    return pred, pred_labels, gt, gt_labels, rng.random(len(gt_labels)) < 0.25


@pytest.mark.parametrize('unseen_is_void', [False, True])
def test_random_pairs_equal_the_coco_algorithm(unseen_is_void):
    rng = np.random.default_rng(int(unseen_is_void))
    num_classes = 4
    total = np.zeros(3)
    for _ in range(400):
        pred, pred_labels, gt, gt_labels, crowd = random_pair(rng, num_classes)
        evaluated = rng.random(num_classes) < 0.7
        counts = count(
            pred,
            pred_labels,
            gt,
            gt_labels,
            crowd,
            num_classes,
            evaluated=evaluated,
            unseen_is_void=unseen_is_void,
        )
        listed = {
            k: (label, is_crowd)
            for k, (label, is_crowd) in enumerate(zip(gt_labels, crowd, strict=True), start=1)
            if evaluated[label]
        }
        if unseen_is_void:
            gt = np.where(np.isin(gt, list(listed)), gt, 0)
        expected = coco_panoptic_counts(
            pred, dict(enumerate(pred_labels, start=1)), gt, listed, num_classes
        )
        assert_counts(counts, expected)
        total += [part.sum() for part in expected[:3]]
    assert (total > 50).all()  # Every outcome occurred many times.


def strip(*runs):
    """One row of pixels from (segment, length) pairs."""
    return np.concatenate([np.full(length, segment) for segment, length in runs])[None]


def test_an_iou_of_exactly_one_half_is_not_a_match():
    half = count(strip((1, 10)), [0], strip((1, 5), (2, 5)), [0, 1], [False, False], 2)
    more = count(strip((1, 10)), [0], strip((1, 6), (2, 4)), [0, 1], [False, False], 2)
    assert (half.tp[0], half.fp[0], half.fn[0]) == (0, 1, 1)
    assert (more.tp[0], more.fp[0], more.fn[0]) == (1, 0, 0)
    np.testing.assert_allclose(more.iou[0], 0.6)


def test_void_pixels_of_a_prediction_are_not_in_the_union():
    counts = count(strip((1, 10)), [0], strip((1, 4), (0, 6)), [0], [False], 1)
    assert counts.tp[0] == 1
    np.testing.assert_allclose(counts.iou[0], 1.0)


@pytest.mark.parametrize(('void', 'false_positives'), [(5, 1), (6, 0)])
def test_a_prediction_more_than_half_on_void_is_ignored(void, false_positives):
    counts = count(strip((1, 10)), [0], strip((1, 10 - void), (0, void)), [1], [False], 2)
    assert counts.fp[0] == false_positives


@pytest.mark.parametrize(('pred_label', 'false_positives'), [(0, 0), (1, 1)])
def test_predictions_on_crowd_of_their_class_are_ignored(pred_label, false_positives):
    counts = count(strip((1, 10)), [pred_label], strip((1, 10)), [0], [True], 2)
    assert counts.fp.sum() == false_positives
    assert counts.fn.sum() == 0


def test_predictions_on_void_and_crowd_together_are_ignored():
    gt = strip((0, 3), (1, 3), (2, 4))
    counts = count(strip((1, 10)), [0], gt, [0, 1], [True, False], 2)
    assert counts.fp[0] == 0


def test_pixels_of_unseen_classes_are_void_only_on_request():
    arguments = strip((1, 10)), [0], strip((1, 10)), [1], [False], 2
    evaluated = np.array([True, False])
    published = count(*arguments, evaluated=evaluated)
    seen_only = count(*arguments, evaluated=evaluated, unseen_is_void=True)
    assert (published.fp[0], published.fn.sum()) == (1, 0)
    assert (seen_only.fp[0], seen_only.fn.sum()) == (0, 0)


def test_padding_slots_are_not_counted():
    plain = count(strip((1, 5), (0, 5)), [1], strip((1, 6), (0, 4)), [1], [False], 3)
    padded = count(
        strip((1, 5), (0, 5)), [1, -1, -1], strip((1, 6), (0, 4)), [1, -1], [False, False], 3
    )
    assert_counts(padded, (plain.tp, plain.fp, plain.fn, plain.iou))
    assert plain.tp.tolist() == [0, 1, 0]


def test_an_empty_prediction_misses_everything():
    counts = count(strip((0, 4)), [], strip((1, 2), (2, 2)), [0, 2], [False, False], 3)
    assert (counts.tp.tolist(), counts.fp.tolist()) == ([0, 0, 0], [0, 0, 0])
    assert counts.fn.tolist() == [1, 0, 1]


def test_an_unlabelled_image_ignores_every_prediction():
    counts = count(strip((1, 4)), [0], strip((0, 4)), [], [], 1)
    assert (counts.tp[0], counts.fp[0], counts.fn[0]) == (0, 0, 0)


def test_small_integer_maps_do_not_overflow():
    size = 200
    segment_map = np.arange(size, dtype=np.uint8).reshape(10, 20)
    labels = [0] * (size - 1)
    counts = count(segment_map, labels, segment_map, labels, [False] * (size - 1), 1)
    assert counts.tp[0] == size - 1


def test_counts_add():
    first = count(strip((1, 4)), [0], strip((1, 3), (0, 1)), [0], [False], 2)
    second = count(strip((1, 4)), [1], strip((1, 4)), [0], [False], 2)
    total = PQCounts.zeros(2) + first + second
    assert (total.tp.tolist(), total.fp.tolist(), total.fn.tolist()) == ([1, 0], [0, 1], [1, 0])


def test_scores_average_over_classes_with_segments():
    counts = PQCounts(
        tp=np.array([2, 0, 0]),
        fp=np.array([1, 1, 0]),
        fn=np.array([1, 0, 0]),
        iou=np.array([1.5, 0, 0]),
    )
    scores = pq_scores(counts, [0, 1, 2])
    expected = {'pq': 50 / 2, 'sq': 75 / 2, 'rq': 100 * 2 / 3 / 2, 'num': 2}
    assert scores == pytest.approx(expected)


@pytest.mark.parametrize('classes', [[], [1]])
def test_scores_of_classes_without_segments_are_nan(classes):
    scores = pq_scores(PQCounts.zeros(2), classes)
    assert np.isnan([scores['pq'], scores['sq'], scores['rq']]).all()
    assert scores['num'] == 0


@pytest.mark.parametrize(
    ('pred', 'pred_labels', 'message'),
    [
        (strip((1, 3)), [0], 'one shape'),
        (strip((2, 4)), [0], r'pred_map must hold ids 0\.\.1'),
        (strip((1, 4)), [7], r'pred_labels must lie in -1\.\.1'),
    ],
)
def test_invalid_maps_are_named_in_the_error(pred, pred_labels, message):
    with pytest.raises(ValueError, match=message):
        count(pred, pred_labels, strip((1, 4)), [0], [False], 2)


def golden_counts():
    """Counts of the golden images, with segments renumbered from 1; unlisted ids become -1."""
    with np.load(GOLDEN) as golden:
        golden = dict(golden)
    total = PQCounts.zeros(150)
    for image, (gt, pred) in enumerate(zip(golden['gt_maps'], golden['pred_maps'], strict=True)):
        gt_rows = {row[1]: row for row in golden['gt_segments'] if row[0] == image}
        pred_rows = {row[1]: row for row in golden['pred_segments'] if row[0] == image}
        gt_ids = sorted(set(gt_rows) | set(np.unique(gt).tolist()) - {0})
        pred_ids = sorted(pred_rows)
        total += count(
            np.searchsorted([0, *pred_ids], pred),
            [pred_rows[k][2] for k in pred_ids],
            np.searchsorted([0, *gt_ids], gt),
            [gt_rows[k][2] if k in gt_rows else -1 for k in gt_ids],
            [k in gt_rows and bool(gt_rows[k][3]) for k in gt_ids],
            150,
        )
    return golden, total


def test_golden_counts_equal_panopticapi():
    golden, counts = golden_counts()
    assert_counts(counts, golden['tp_fp_fn_iou'].T)


def test_golden_per_class_scores_equal_panopticapi():
    golden, counts = golden_counts()
    per_class = counts.per_class()
    present = golden['per_class_present']
    for column, name in enumerate(('pq', 'sq', 'rq')):
        np.testing.assert_allclose(
            per_class[name][present], 100 * golden['per_class'][present, column], atol=1e-6
        )
        assert np.isnan(per_class[name][~present]).all()
    overall = pq_scores(counts, range(150))
    np.testing.assert_allclose(
        [overall[name] for name in ('pq', 'sq', 'rq', 'num')],
        golden['overall'][0] * [100, 100, 100, 1],
        atol=1e-6,
    )
