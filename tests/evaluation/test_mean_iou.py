import functools
import json
import operator
from pathlib import Path

import numpy as np
import pytest

from simcis_jax.evaluation.mean_iou import (
    SemanticCounts,
    count_pixels,
    count_with_background,
    iou,
    miou_scores,
    miou_with_background,
)
from simcis_jax.evaluation.overlap import overlap_table

GOLDEN = Path(__file__).parent / 'golden' / 'metrics_miou.npz'


def overlaps(pred, gt, num_classes):
    """Overlap table and labels of label maps, in which labels outside 0..C-1 mean none."""
    values, positions = np.unique(gt, return_inverse=True)
    labels = np.where(values < num_classes, values.astype(int), -1)
    gt_map = positions.reshape(gt.shape) + 1
    return overlap_table(np.minimum(pred, num_classes), num_classes, gt_map, len(labels)), labels


def count(pred, gt, num_classes, evaluated=None):
    return count_pixels(*overlaps(pred, gt, num_classes), evaluated=evaluated)


def iou_by_loops(pred, gt, num_classes, count_unassigned):
    """IoU in percent of every class that has true pixels, by sets of pixels."""
    result = {}
    counted = {tuple(p) for p in np.argwhere(gt < num_classes)}
    if not count_unassigned:
        counted &= {tuple(p) for p in np.argwhere(pred < num_classes)}
    for c in range(num_classes):
        true = counted & {tuple(p) for p in np.argwhere(gt == c)}
        predicted = counted & {tuple(p) for p in np.argwhere(pred == c)}
        if true:
            result[c] = 100 * len(true & predicted) / len(true | predicted)
    return result


@pytest.mark.parametrize('count_unassigned', [True, False])
def test_iou_equals_plain_loops(count_unassigned):
    rng = np.random.default_rng(0)
    for _ in range(20):
        gt = rng.choice([0, 1, 2, 3, 255], (9, 11))
        pred = np.where(rng.random(gt.shape) < 0.6, gt, rng.integers(0, 6, gt.shape))
        values = iou(count(pred, gt, 5), count_unassigned=count_unassigned)
        expected = iou_by_loops(pred, gt, 5, count_unassigned)
        assert np.flatnonzero(~np.isnan(values)).tolist() == list(expected)
        np.testing.assert_allclose(values[list(expected)], list(expected.values()))


def test_unassigned_pixels_count_as_errors_except_in_the_reference():
    gt = np.zeros((1, 10), int)
    pred = np.array([[0] * 5 + [1] * 5])  # 1 = unassigned, since there is one class.
    scores = miou_scores(count(pred, gt, 1), [0])
    assert scores == pytest.approx({'miou': 50.0, 'miou_reference': 100.0})


def test_a_class_without_assigned_pixels_counts_zero_except_in_the_reference():
    gt = np.array([[0, 0, 1, 1]])
    pred = np.array([[0, 0, 2, 2]])
    scores = miou_scores(count(pred, gt, 2), [0, 1])
    assert scores == pytest.approx({'miou': 50.0, 'miou_reference': 100.0})


def test_classes_not_evaluated_are_ignored():
    gt = np.array([[0, 0, 1, 1]])
    pred = np.array([[0, 0, 0, 0]])
    evaluated = np.array([True, False])
    counts = count(pred, gt, 2, evaluated=evaluated)
    assert miou_scores(counts, [0])['miou'] == 100
    assert counts.predicted.tolist() == [2, 0]


def test_without_true_pixels_the_score_is_nan():
    counts = count(np.zeros((2, 2), int), np.full((2, 2), 255), 3)
    assert np.isnan(list(miou_scores(counts, [0, 1]).values())).all()
    assert np.isnan(list(miou_scores(counts, []).values())).all()


def test_with_background_every_pixel_counts():
    """Label maps in which background is one more class, compared pixel by pixel."""
    rng = np.random.default_rng(1)
    evaluated, seen, background = np.array([True, True, False, True, False]), (3, 0, 1), 5
    total, pairs = SemanticCounts.zeros(5), []
    for _ in range(20):
        gt = rng.choice([0, 1, 2, 255], (9, 11))  # No pixel of class 3.
        pred = np.where(rng.random(gt.shape) < 0.4, gt, rng.choice([0, 1, 3, 5], gt.shape))
        pred = np.where(np.isin(pred, seen), pred, background)
        table, labels = overlaps(pred, gt, 5)
        void = labels < 0  # As row 0, like the void pixels of a data set.
        table = np.vstack([table[0] + table[1:][void].sum(axis=0), table[1:][~void]])
        counts = count_with_background(table, labels[~void], evaluated)
        assert counts.labelled.true.sum() == np.isin(gt, seen).sum()
        total += SemanticCounts.from_json(json.loads(json.dumps(counts.to_json())), 5)
        pairs += zip(pred.ravel(), np.where(np.isin(gt, seen), gt, background).ravel(), strict=True)
    pred, gt = np.array(pairs).T
    values = {
        c: 100 * np.sum((pred == c) & (gt == c)) / np.sum((pred == c) | (gt == c))
        for c in (0, 1, background)
    }
    groups = {'base': (3, 0), 'novel': (1,), 'current': (3,), 'all': (3, 0, 1)}
    assert miou_with_background(total, groups) == pytest.approx(
        {'base': values[0], 'novel': values[1], 'current': float('nan'),
         'all': np.mean([*values.values()])}, nan_ok=True)  # fmt: skip


@pytest.mark.parametrize('stage', [1, 2, 3])
def test_reference_scores_equal_the_published_evaluator(stage):
    num_seen = 90 + 10 * stage
    groups = {
        'old': range(100),
        'new': range(100, num_seen),
        'past': range(num_seen - 10 if stage > 1 else 0),
        'current': range(num_seen - 10 if stage > 1 else 0, num_seen),
        'all': range(num_seen),
    }
    with np.load(GOLDEN) as golden:
        pairs = zip(golden['pred'], golden['gt'], strict=True)
        counts = functools.reduce(
            operator.add,
            (count(pred, gt, 150, evaluated=np.arange(150) < num_seen) for pred, gt in pairs),
        )
        confusion = golden[f'task{stage}/conf_matrix']  # [predicted, true], the last = none.
        np.testing.assert_array_equal(counts.true, confusion[:, :-1].sum(axis=0))
        np.testing.assert_array_equal(counts.hits, np.diag(confusion)[:-1])
        np.testing.assert_array_equal(counts.unassigned, confusion[-1, :-1])
        np.testing.assert_array_equal(counts.predicted, confusion[:-1, :-1].sum(axis=1))
        np.testing.assert_allclose(
            iou(counts, count_unassigned=False), golden[f'task{stage}/iou'], rtol=1e-6
        )
        published = dict(
            zip(golden[f'task{stage}/names'], golden[f'task{stage}/values'], strict=True)
        )
    for name, classes in groups.items():
        np.testing.assert_allclose(
            miou_scores(counts, classes)['miou_reference'],
            published[f'mIoU_{name}'],
            rtol=1e-6,
        )
