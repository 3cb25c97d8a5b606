"""Merged duplicates against plain loops."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.special

from simcis_jax.model.class_logits import class_probabilities
from simcis_jax.model.duplicates import LARGEST, mask_ious, merge_duplicates

QUERIES, CLASSES, OVERLAP = 40, 5, 0.5
merge = jax.jit(merge_duplicates, static_argnames=('overlap', 'head', 'masks'))


def rectangles(rng):
    """Mask logits [Q, 8, 8]: a few rectangles, each claimed by several queries with some noise."""
    logits = np.full((QUERIES, 8, 8), -3.0)
    for query in range(QUERIES):
        top, left = 4 * rng.integers(0, 2, 2)
        logits[query, top : top + rng.integers(2, 5), left : left + rng.integers(2, 5)] = 3
    logits[:2] = -3  # Empty masks.
    return logits.astype(np.float32)


def merged_by_loops(probabilities, masks):
    """The probability [Q] of the label of each query, 0 for duplicates, and the labels."""
    labels, best = probabilities.argmax(axis=1), probabilities.max(axis=1)
    total, taken = np.zeros(len(best)), set()
    for leader in sorted(range(len(best)), key=lambda query: -best[query]):
        if leader in taken:
            continue
        for query in range(len(best)):
            union = (masks[query] | masks[leader]).sum()
            overlap = (masks[query] & masks[leader]).sum() / max(union, 1)
            alike = labels[query] == labels[leader] and overlap > OVERLAP
            if query not in taken and (alike or query == leader):
                total[leader] += best[query]
                taken.add(query)
    return np.minimum(total, LARGEST), labels


@pytest.mark.parametrize('seed', range(3))
@pytest.mark.parametrize('head', ['sigmoid', 'softmax', 'independent'])
def test_duplicates_are_merged_as_by_loops(head, seed):
    rng = np.random.default_rng(seed)
    masks = rectangles(rng)
    logits = rng.normal(-2, 1, (QUERIES, CLASSES + (head != 'sigmoid'))).astype(np.float32)
    allowed = np.array([True, True, False, True, True])
    before = np.asarray(class_probabilities(logits, head, allowed))
    merged = merge(logits, masks, allowed, overlap=OVERLAP, head=head)
    after = np.asarray(class_probabilities(merged, head, allowed))
    total, labels = merged_by_loops(before, masks > 0)
    assert 5 < (total > 0).sum() < QUERIES - 5
    rows = np.arange(QUERIES)
    np.testing.assert_allclose(after[rows, labels], total, rtol=1e-4, atol=1e-6)
    assert (after.max(axis=1)[total == 0] == 0).all()
    # Other classes of a leader keep their probability; of one distribution, their ratios.
    leads = (total > 0) & (total < LARGEST)
    others = np.arange(CLASSES) != labels[:, None]
    scale = np.ones(QUERIES)
    if head == 'softmax':
        scale = (1 - total) / (1 - before.max(axis=1))
        np.testing.assert_allclose(scipy.special.softmax(merged, axis=1).sum(axis=1), 1, rtol=1e-5)
    expected = np.where(others, before * scale[:, None], after)[leads]
    np.testing.assert_allclose(after[leads], expected, rtol=1e-3, atol=1e-6)


def test_queries_of_other_classes_or_places_are_not_duplicates():
    masks = np.full((3, 4, 4), -1.0, np.float32)
    masks[:2, :2] = 1
    masks[2, 2:] = 1
    logits = np.array([[1.0, -3], [-3, 0.5], [0.8, -3]], np.float32)
    merged = merge(logits, masks, None, overlap=OVERLAP)
    np.testing.assert_allclose(merged, logits, rtol=1e-5)


def test_the_probabilities_of_duplicates_are_added():
    masks = np.ones((3, 2, 2), np.float32)
    probabilities = np.array([0.2, 0.3, 0.1])
    logits = np.stack([scipy.special.logit(probabilities), np.full(3, -9.0)], axis=1)
    merged = jax.nn.sigmoid(merge(jnp.float32(logits), masks, None, overlap=OVERLAP))
    np.testing.assert_allclose(merged[:, 0], [0, 0.6, 0], atol=1e-6)


def test_ious_of_masks():
    masks = np.zeros((3, 2, 4), bool)
    masks[0, 0], masks[1, :, :2] = True, True
    expected = np.array([[1, 2 / 6, 0], [2 / 6, 1, 0], [0, 0, 0]])
    np.testing.assert_allclose(mask_ious(jnp.asarray(masks)), expected, rtol=1e-6)
