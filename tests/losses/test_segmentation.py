"""Single loss terms and corner cases; whole steps are in test_published_training.py."""

import golden_weights
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from simcis_jax.losses.classification import focal_loss
from simcis_jax.losses.masks import mask_losses_at
from simcis_jax.losses.point_sampling import sample_segments, uncertain_points
from simcis_jax.losses.segmentation import (
    Matches,
    PointSampling,
    match_targets,
    query_labels,
    segmentation_losses,
)
from simcis_jax.losses.weights import LossWeights
from simcis_jax.types import Predictions, Selection, Targets

losses = jax.jit(segmentation_losses, static_argnames='sampling')


def predictions_of(class_logits, boxes, virtual_logits, embeddings, features):
    """Predictions [L, B, ...] without a selection."""
    nothing = jnp.zeros((len(features), 0))
    selection = Selection(token_logits=nothing, positions=nothing, queries=nothing)
    return Predictions(
        class_logits=jnp.asarray(class_logits),
        mask_embeddings=embeddings,
        boxes=jnp.asarray(boxes),
        virtual_class_logits=jnp.asarray(virtual_logits),
        mask_features=features,
        selection=selection,
    )


def test_focal_loss_equals_the_published_code():
    golden = golden_weights.load('components')
    # The recorded rows have several classes; the loss is per entry, so each becomes a row.
    labels = golden['focal/targets'].ravel().astype(int) - 1
    loss = focal_loss(golden['focal/logits'].reshape(-1, 1), labels)
    np.testing.assert_allclose(loss / 4, golden['focal/value'], rtol=1e-5)


def test_queries_unmatched_or_matched_to_padding_have_no_label():
    labels = query_labels(jnp.array([4, 0, 4, 0]), jnp.array([7, 5, -1, -1]), 6)
    assert labels.tolist() == [5, -1, -1, -1, 7, -1]


# A small random problem: 2 decoder outputs, 2 images, 5 queries, 4 classes, 2 virtual queries.

WEIGHTS = LossWeights()
SAMPLING = PointSampling(num_points=16)


def small_predictions(key):
    keys = jax.random.split(key, 5)
    return predictions_of(
        jax.random.normal(keys[0], (2, 2, 5, 4)) * 3,
        jax.random.uniform(keys[1], (2, 2, 5, 4)),
        jax.random.normal(keys[2], (2, 2, 2, 4)) * 3,
        jax.random.normal(keys[3], (2, 2, 5, 3)) * 3,
        jax.random.normal(keys[4], (2, 8, 8, 3)),
    )


def small_targets(key, num_targets):
    """`num_targets` targets in each image; the last has no pixels unless it is the only one."""
    num_shown = max(num_targets - 1, min(num_targets, 1))
    maps = jax.random.randint(key, (2, 16, 16), 0, num_shown + 1)
    real = jnp.arange(5) < num_targets
    return Targets(
        segment_map=maps.astype(jnp.uint8),
        labels=jnp.broadcast_to(jnp.where(real, jnp.arange(5) % 4, -1), (2, 5)),
        boxes=jnp.where(real[:, None], jax.random.uniform(key, (2, 5, 4)), 0.0),
        dropped=jnp.zeros(2, jnp.int32),
    )


@jax.jit
def small_step(predictions, targets, virtual_labels):
    """Terms and gradients, from matching to losses."""

    def loss(predictions):
        keys = jax.random.split(jax.random.key(5))
        matches = match_targets(predictions, targets, keys, weights=WEIGHTS, num_points=16)
        terms = segmentation_losses(
            predictions, targets, matches, keys, virtual_labels=virtual_labels, sampling=SAMPLING
        )
        return sum(term.sum() for term in terms.values()), (terms, matches)

    return jax.value_and_grad(loss, has_aux=True)(predictions)


NO_LABELS = jnp.full((2, 2), -1, jnp.int32)


@pytest.mark.parametrize('num_targets', [0, 1, 5])
def test_losses_and_gradients_are_finite_for_any_number_of_targets(num_targets):
    predictions = small_predictions(jax.random.key(0))
    targets = small_targets(jax.random.key(1), num_targets)
    (total, (terms, matches)), gradient = small_step(predictions, targets, NO_LABELS)
    assert jnp.isfinite(total) and matches.num_nonfinite == 0
    assert all(jnp.isfinite(x).all() for x in jax.tree.leaves(gradient))
    assert all(term.shape == (2,) for term in terms.values())
    for name in ('mask', 'dice', 'box', 'giou'):
        assert (np.asarray(terms[name]) > 0).all() == (num_targets > 0), name
    assert gradient.mask_embeddings.any() == gradient.boxes.any() == (num_targets > 0)
    assert gradient.class_logits.all()  # Every query has negative classes.


def test_without_targets_every_class_logit_is_pushed_down():
    predictions = small_predictions(jax.random.key(0))
    targets = small_targets(jax.random.key(1), 0)
    (_, (terms, _)), gradient = small_step(predictions, targets, NO_LABELS)
    x = np.asarray(predictions.class_logits, np.float64)
    p = 1 / (1 + np.exp(-x))
    expected = (-0.75 * p**2 * np.log(1 - p)).sum(axis=(1, 2, 3))
    np.testing.assert_allclose(terms['class'], expected, rtol=1e-5)
    assert (gradient.class_logits > 0).all()


def test_virtual_queries_contribute_to_the_class_term_only():
    predictions = small_predictions(jax.random.key(0))
    targets = small_targets(jax.random.key(1), 2)
    (_, (without, _)), _ = small_step(predictions, targets, NO_LABELS)
    labels = jnp.array([[3, -1], [0, 2]])
    (_, (terms, _)), gradient = small_step(predictions, targets, labels)
    for name in ('mask', 'dice', 'box', 'giou'):
        np.testing.assert_array_equal(terms[name], without[name])
    alone = [
        sum(
            focal_loss(predictions.virtual_class_logits[layer, image, i][None], label[None])
            for image, row in enumerate(labels)
            for i, label in enumerate(row)
            if label >= 0
        )
        for layer in range(2)
    ]
    np.testing.assert_allclose(terms['class'] - without['class'], alone, rtol=1e-4)
    assert gradient.virtual_class_logits[:, labels >= 0].all()


@pytest.mark.parametrize('logit', [0.0, 1e6, np.inf, np.nan])
def test_virtual_queries_without_a_label_have_zero_loss_and_gradient(logit):
    predictions = small_predictions(jax.random.key(0))
    targets = small_targets(jax.random.key(1), 2)
    none = predictions.replace(virtual_class_logits=jnp.full((2, 2, 2, 4), logit, jnp.float32))
    (total, _), gradient = small_step(none, targets, NO_LABELS)
    np.testing.assert_array_equal(total, small_step(predictions, targets, NO_LABELS)[0][0])
    assert not gradient.virtual_class_logits.any()


def test_terms_are_sums_over_the_images():
    predictions, targets = small_predictions(jax.random.key(0)), small_targets(jax.random.key(1), 3)
    keys = jax.random.split(jax.random.key(2))
    queries = jnp.array([[[0, 1, 2, 3, 4], [4, 2, 0, 1, 3]]] * 2)

    def terms(images):
        """The terms of a batch of these two images."""
        in_sets = ('class_logits', 'mask_embeddings', 'boxes', 'virtual_class_logits')
        return losses(
            predictions.replace(
                mask_features=predictions.mask_features[images],
                **{name: getattr(predictions, name)[:, images] for name in in_sets},
            ),
            jax.tree.map(lambda x: x[images], targets),
            Matches(queries[:, images], jnp.zeros((), jnp.int32)),
            keys[images],
            virtual_labels=jnp.zeros((2, 2), jnp.int32),
            sampling=SAMPLING,
        )

    both, first, second = (terms(jnp.array(images)) for images in ([0, 1], [0, 0], [1, 1]))
    for name, term in both.items():
        assert (first[name] != second[name]).all()
        np.testing.assert_allclose(2 * term, first[name] + second[name], rtol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize('first', [0, 7, 16])
def test_mask_terms_equal_a_loop_over_targets(first):
    """Of 19 slots, three chunks of which the last is not full; only some hold targets."""
    keys = jax.random.split(jax.random.key(3), 6)
    predictions = small_predictions(keys[0])
    valid = np.zeros((2, 19), bool)
    valid[0, [first, first + 2]] = valid[1, 5] = True
    targets = Targets(
        segment_map=jax.random.randint(keys[1], (2, 16, 16), 0, 20).astype(jnp.uint8),
        labels=jnp.where(valid, 1, -1),
        boxes=jnp.full((2, 19, 4), 0.5),
        dropped=jnp.zeros(2, jnp.int32),
    )
    queries = jax.random.randint(keys[2], (2, 2, 19), 0, 5)
    image_keys = jax.random.split(keys[3], 2)

    def total(predictions):
        matches = Matches(queries, jnp.zeros((), jnp.int32))
        terms = segmentation_losses(
            predictions,
            targets,
            matches,
            image_keys,
            virtual_labels=NO_LABELS,
            sampling=SAMPLING,
        )
        return terms['mask'].sum() + 2 * terms['dice'].sum(), terms

    def loop(predictions):
        terms = {'mask': [0.0, 0.0], 'dice': [0.0, 0.0]}
        for image, slot in np.argwhere(valid):
            for layer, set_key in enumerate(jax.random.split(image_keys[image], 2)):
                embedding = predictions.mask_embeddings[layer, image, queries[layer, image, slot]]
                logits = predictions.mask_features[image] @ embedding
                points = uncertain_points(
                    jax.random.split(set_key, 19)[slot],
                    logits,
                    num_points=16,
                    oversample_ratio=3.0,
                    importance_ratio=0.75,
                )
                truth = sample_segments(targets.segment_map[image], points, slot + 1)
                mask, dice = mask_losses_at(points, logits, truth)
                terms['mask'][layer] += mask
                terms['dice'][layer] += dice
        terms = {name: jnp.stack(term) for name, term in terms.items()}
        return terms['mask'].sum() + 2 * terms['dice'].sum(), terms

    (_, actual), gradient = jax.value_and_grad(total, has_aux=True)(predictions)
    (_, expected), expected_gradient = jax.jit(jax.value_and_grad(loop, has_aux=True))(predictions)
    for name, term in expected.items():
        np.testing.assert_allclose(actual[name], term, rtol=1e-5)
    for name in ('mask_embeddings', 'mask_features'):
        np.testing.assert_allclose(
            getattr(gradient, name), getattr(expected_gradient, name), rtol=1e-4, atol=1e-5
        )


def perfect_case():
    """Queries that predict the targets perfectly, in a different order in each decoder output."""
    orders = np.array([[3, 0, 4, 1], [1, 2, 0, 3]])  # The query of every target.
    segment_map = jnp.repeat(jnp.repeat(jnp.array([[1, 2], [3, 4]]), 4, axis=0), 4, axis=1)
    features = jax.nn.one_hot(segment_map - 1, 4)[None]
    embeddings, logits = np.zeros((2, 1, 5, 4)), np.full((2, 1, 5, 3), -5.0)
    labels = np.array([2, 0, 0, 1])
    for layer, order in enumerate(orders):
        for target, query in enumerate(order):
            embeddings[layer, 0, query] = -20
            embeddings[layer, 0, query, target] = 20
            logits[layer, 0, query, labels[target]] = 5
    targets = Targets(
        segment_map=segment_map[None],
        labels=jnp.pad(labels, (0, 1), constant_values=-1)[None],
        boxes=jnp.zeros((1, 5, 4)),
        dropped=jnp.zeros(1, jnp.int32),
    )
    boxes = jnp.zeros((2, 1, 5, 4))
    predictions = predictions_of(
        logits, boxes, jnp.zeros((2, 1, 0, 3)), jnp.asarray(embeddings), features
    )
    return predictions, targets, orders


@jax.jit
def matched(predictions, targets):
    keys = jax.random.split(jax.random.key(0), 1)
    return match_targets(predictions, targets, keys, weights=WEIGHTS, num_points=64)


def test_every_decoder_output_is_matched_on_its_own():
    predictions, targets, orders = perfect_case()
    matches = matched(predictions, targets)
    np.testing.assert_array_equal(matches.queries[:, 0, :4], orders)
    assert matches.num_nonfinite == 0


def test_nonfinite_predictions_are_counted_and_matched_last():
    predictions, targets, orders = perfect_case()
    broken = predictions.replace(class_logits=predictions.class_logits.at[1, 0, 4].set(jnp.nan))
    matches = matched(broken, targets)
    assert matches.num_nonfinite == 4  # One for every target.
    np.testing.assert_array_equal(matches.queries[:, 0, :4], orders)
