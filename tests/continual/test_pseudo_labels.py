"""Pseudo-labels against the published code, on hand-made teacher outputs."""

import functools

import golden_weights
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from traced import lookup_sizes

from simcis_jax.continual.pseudo_labels import (
    PseudoLabelRule,
    add_pseudo_labels,
    box_of,
    merge_targets,
)
from simcis_jax.types import Predictions, Selection, Targets

SLOTS = 12
RULES = {
    'pan': PseudoLabelRule(),
    'sem': PseudoLabelRule(score_threshold=0.0, temperature=None, merge_classes=True),
    'sem35': PseudoLabelRule(temperature=None, merge_classes=True),
}


@pytest.fixture(scope='module')
def golden():
    return golden_weights.load('psd_handmade')


def ground_truth(golden, image, slots=SLOTS):
    """The ground truth of one image; its classes were not recorded and do not matter."""
    masks = np.unpackbits(golden[f'in/b{image}/gt_masks_packed'], axis=-1)
    number = np.arange(1, len(masks) + 1)
    return Targets(
        segment_map=(masks * number[:, None, None]).sum(axis=0).astype(np.uint8),
        labels=np.pad(100 + number, (0, slots - len(masks)), constant_values=-1).astype(np.int32),
        boxes=np.pad(np.full((len(masks), 4), 0.25, np.float32), ((0, slots - len(masks)), (0, 0))),
        dropped=np.int32(0),
    )


FIRST_UNSEEN = (
    jnp.arange(150) == 100
)  # Published: all classes compete, queries of this one are dropped.


@functools.partial(jax.jit, static_argnames='rule')
def add(class_logits, mask_logits, targets, allowed, rule, rejected=None):
    return add_pseudo_labels(
        class_logits, mask_logits, targets, allowed, rule=rule, rejected=rejected
    )


def published(golden, image, rule, slots=SLOTS):
    truth = ground_truth(golden, image, slots)
    logits, masks = golden['in/logits'][image], golden['in/masks_quarter'][image]
    return truth, add(logits, masks, truth, np.ones(150, bool), rule, FIRST_UNSEEN)


@pytest.mark.parametrize('image', [0, 1, 2])
@pytest.mark.parametrize('rule', RULES)
def test_pseudo_labels_equal_the_published_code(golden, rule, image):
    truth, targets = published(golden, image, RULES[rule])
    labels = golden[f'{rule}/b{image}/labels']
    num_truth, num_pseudo = (truth.labels >= 0).sum(), len(labels)
    end = num_truth + num_pseudo
    np.testing.assert_array_equal(targets.labels[:num_truth], truth.labels[:num_truth])
    np.testing.assert_array_equal(targets.labels[num_truth:end], labels)
    assert (targets.labels[end:] == -1).all() and targets.dropped == 0
    np.testing.assert_array_equal(targets.boxes[:num_truth], truth.boxes[:num_truth])
    boxes = golden[f'{rule}/b{image}/boxes']
    np.testing.assert_allclose(targets.boxes[num_truth:end], boxes, atol=1e-6)
    assert not targets.boxes[end:].any()

    masks = np.unpackbits(golden[f'{rule}/b{image}/masks_packed'], axis=-1)
    number = np.arange(num_truth + 1, end + 1)
    expected = truth.segment_map + (masks * number[:, None, None]).sum(axis=0)
    np.testing.assert_array_equal(targets.segment_map, expected)
    assert targets.segment_map.dtype == truth.segment_map.dtype


def test_segments_without_a_slot_are_counted_and_the_highest_scores_stay(golden):
    _, everything = published(golden, 0, RULES['pan'])
    truth, targets = published(golden, 0, RULES['pan'], slots=5)
    assert (truth.labels >= 0).sum() == 2 and (everything.labels >= 0).sum() == 10
    np.testing.assert_array_equal(targets.labels, everything.labels[:5])
    np.testing.assert_array_equal(targets.boxes, everything.boxes[:5])
    kept = np.where(everything.segment_map <= 5, everything.segment_map, 0)
    np.testing.assert_array_equal(targets.segment_map, kept)
    assert targets.dropped == 5


def test_classes_without_a_slot_are_counted_once(golden):
    _, everything = published(golden, 0, RULES['sem'])
    _, targets = published(golden, 0, RULES['sem'], slots=4)
    np.testing.assert_array_equal(targets.labels, everything.labels[:4])
    assert targets.dropped == (everything.labels >= 0).sum() - 4 == 6


def test_ground_truth_that_fills_all_slots_is_unchanged(golden):
    truth, targets = published(golden, 0, RULES['pan'], slots=2)
    for name in ('segment_map', 'labels', 'boxes'):
        np.testing.assert_array_equal(getattr(targets, name), getattr(truth, name))
    assert targets.dropped == 8


def test_dropped_segments_add_to_those_dropped_before(golden):
    truth = ground_truth(golden, 2).replace(dropped=np.int32(3))
    logits, masks = golden['in/logits'][2], golden['in/masks_quarter'][2]
    assert add(logits, masks, truth, ~FIRST_UNSEEN, RULES['pan']).dropped == 3


def test_only_allowed_classes_are_predicted(golden):
    truth = ground_truth(golden, 0)
    logits, masks = golden['in/logits'][0], golden['in/masks_quarter'][0]
    past = np.arange(150) < 100
    labels = np.asarray(add(logits, masks, truth, past, RULES['pan']).labels[2:])
    assert (labels < 100).all() and {5, 30, 62} <= set(labels.tolist())


def test_without_allowed_classes_nothing_is_added(golden):
    truth = ground_truth(golden, 0)
    logits, masks = golden['in/logits'][0], golden['in/masks_quarter'][0]
    targets = add(logits, masks, truth, np.zeros(150, bool), RULES['sem'])
    for name in ('segment_map', 'labels', 'boxes', 'dropped'):
        np.testing.assert_array_equal(getattr(targets, name), getattr(truth, name))


def small_case(scores, masks, slots=4):
    """Class logits [Q, C], mask logits at the size of the image, and empty ground truth."""
    masks = jnp.asarray(masks, jnp.float32)
    truth = Targets(
        segment_map=jnp.zeros(masks.shape[1:], jnp.uint8),
        labels=jnp.full(slots, -1),
        boxes=jnp.zeros((slots, 4)),
        dropped=jnp.array(0),
    )
    return jnp.asarray(scores, jnp.float32), masks * 20 - 10, truth


def test_a_segment_must_keep_more_than_the_overlap_threshold():
    rule = PseudoLabelRule(overlap_threshold=0.8)
    row = [1, 1, 1, 1, 1, 0, 0, 0]
    logits, masks, truth = small_case([[3.0, -9.0]], [[row]])
    for num_taken, kept in ((0, True), (1, False)):  # 4 of 5 pixels are exactly 0.8.
        taken = truth.replace(
            segment_map=(jnp.arange(8) < num_taken)[None].astype(jnp.uint8),
            labels=truth.labels.at[0].set(7 if num_taken else -1),
        )
        targets = add(logits, masks, taken, np.ones(2, bool), rule)
        assert (targets.labels[num_taken] == 0) == kept


def test_a_probability_must_be_above_the_score_threshold():
    logits, masks, truth = small_case([[0.0, -9.0], [0.1, -9.0]], [[[1, 1, 0, 0]], [[0, 0, 1, 1]]])
    targets = add(logits, masks, truth, np.ones(2, bool), PseudoLabelRule(score_threshold=0.5))
    np.testing.assert_array_equal(targets.labels, [0, -1, -1, -1])
    np.testing.assert_array_equal(targets.segment_map, [[0, 0, 1, 1]])


def test_only_classes_that_the_teacher_may_name_share_the_ranking_score():
    # Their softmax is 0.70 for the first query and 0.58 for the second; with the third class in it
    # the first would have 0.53.
    probabilities = np.array([[0.05, 1e-9, 0.5], [0.28, 0.3, 0.5]])
    logits, masks, truth = small_case(
        np.log(probabilities / (1 - probabilities)), [[[1, 1, 0, 0]], [[0, 0, 1, 1]]]
    )
    targets = add(logits, masks, truth, np.arange(3) < 2, PseudoLabelRule(score_threshold=0.0))
    np.testing.assert_array_equal(targets.labels, [0, 1, -1, -1])


def test_a_batch_is_merged_image_by_image(golden):
    truth = [ground_truth(golden, image) for image in range(3)]
    batch = jax.tree.map(lambda *x: np.stack(x), *truth)
    masks = golden['in/masks_quarter']  # One feature per query, so embeddings are the identity.
    nothing = jnp.zeros((3, 0))
    teacher = Predictions(
        class_logits=jnp.asarray(golden['in/logits'])[None],
        mask_embeddings=jnp.broadcast_to(jnp.eye(14), (1, 3, 14, 14)),
        boxes=jnp.zeros((1, 3, 14, 4)),
        virtual_class_logits=jnp.zeros((1, 3, 0, 150)),
        mask_features=jnp.moveaxis(masks, 1, -1),
        selection=Selection(nothing, nothing, nothing),
    )
    merged = merge_targets(
        teacher, batch, np.ones(150, bool), rule=RULES['pan'], rejected=FIRST_UNSEEN
    )
    for image in range(3):
        _, expected = published(golden, image, RULES['pan'])
        for name in ('segment_map', 'labels', 'boxes', 'dropped'):
            np.testing.assert_array_equal(getattr(merged, name)[image], getattr(expected, name))


def test_no_pixel_is_looked_up_on_tpu():
    """A TPU reads or writes the elements of a lookup one after the other."""
    size = (48, 64)
    truth = Targets(np.zeros(size, np.uint8), np.full(SLOTS, -1), np.zeros((SLOTS, 4)), 0)
    arguments = np.zeros((14, 150)), np.zeros((14, 12, 16)), truth, np.ones(150, bool)
    for rule in RULES.values():
        add = functools.partial(add_pseudo_labels, rule=rule)
        largest = {name: max(lookup_sizes(add, arguments, name)) for name in ('cpu', 'tpu')}
        assert 12 <= largest['tpu'] <= 150  # Slots, queries or classes.
        assert largest['cpu'] == 48 * 64


def test_boxes_are_tight():
    rng = np.random.default_rng(0)
    masks = rng.random((40, 6, 9)) < rng.choice([0.02, 0.1, 0.5], (40, 1, 1))
    masks[0] = False
    masks[1] = True
    expected = np.zeros((40, 4))
    for mask, box in zip(masks, expected, strict=True):
        if mask.any():
            (y, x) = np.nonzero(mask)
            x0, x1, y0, y1 = x.min() / 9, (x.max() + 1) / 9, y.min() / 6, (y.max() + 1) / 6
            box[:] = (x0 + x1) / 2, (y0 + y1) / 2, x1 - x0, y1 - y0
    np.testing.assert_allclose(jax.vmap(box_of)(masks), expected, atol=1e-6)
