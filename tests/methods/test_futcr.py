"""The losses of FuTCR, against those of the published code and on cases that are known by hand."""

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from simcis_jax.methods.futcr import FuTCR, class_map, draw
from simcis_jax.methods.step import Step
from simcis_jax.types import Batch, Predictions, Selection, StageArrays, Targets

GOLDEN = Path(__file__).parent / 'golden' / 'futcr_losses.npz'
CASES = ('main', 'one_region', 'no_region', 'no_known')
ALL = FuTCR(contrast_pixels=10**6, repulsion_pixels=10**6)  # Nothing is drawn at random.
STRIDE, UNLABELLED = 4, 150


@pytest.fixture(scope='module')
def golden():
    return dict(np.load(GOLDEN))


def inputs(golden, case):
    """Features [B, h, w, D], masks [B, Q, h, w], labels [B, h, w] and known classes [C]."""
    features = np.moveaxis(golden['mask_features'], 1, -1)
    masks, labels = golden['pred_masks'].copy(), golden['gt'][:, ::STRIDE, ::STRIDE].copy()
    if case == 'one_region':
        features, masks, labels = features[:1], masks[:1], labels[:1]
        masks[:, 2:] = -5
    elif case == 'no_region':
        masks[:] = -5
    elif case == 'no_known':
        labels[:] = UNLABELLED
    labels = np.where(labels == UNLABELLED, -1, labels)
    known = np.isin(np.arange(UNLABELLED), golden['known'])
    return map(jnp.asarray, (features, masks, labels, known))


def losses(features, masks, labels, known):
    keys = jax.random.split(jax.random.key(0), len(labels))
    pixels, selected = ALL.regions(masks, labels)
    contrast = ALL.contrast(features, pixels, selected, keys)
    repulsion = ALL.repulsion(features, labels, known, keys)
    total = ALL.contrast_weight * contrast + ALL.repulsion_weight * repulsion
    return total, (contrast, repulsion, pixels, selected)


gradient = jax.jit(jax.value_and_grad(losses, argnums=(0, 1), has_aux=True))


@pytest.mark.parametrize('case', CASES)
def test_regions_losses_and_gradients_are_those_of_the_published_code(golden, case):
    (total, found), (by_features, by_masks) = gradient(*inputs(golden, case))
    contrast, repulsion, pixels, selected = found
    np.testing.assert_array_equal(selected, golden[f'{case}/selected'])
    sizes = np.asarray(pixels.sum(axis=(2, 3)))[np.asarray(selected)]
    np.testing.assert_array_equal(sizes, golden[f'{case}/sizes'])
    for name, value in (('nce', contrast), ('repulsion', repulsion), ('total', total)):
        np.testing.assert_allclose(value, golden[f'{case}/{name}'], rtol=1e-5, atol=1e-6)
    recorded = np.moveaxis(golden[f'{case}/grad'], 1, -1)
    atol = 1e-4 * np.abs(recorded).max()
    np.testing.assert_allclose(by_features, recorded, rtol=1e-4, atol=atol)
    assert not by_masks.any()


def test_without_unlabelled_pixels_there_is_no_loss(golden):
    features, masks, labels, known = inputs(golden, 'main')
    (total, _), (by_features, _) = gradient(features, masks, jnp.zeros_like(labels), known)
    assert total == 0 and not by_features.any()


def test_features_of_length_zero_have_finite_gradients(golden):
    features, masks, labels, known = inputs(golden, 'main')
    _, (by_features, _) = gradient(features * 0, masks, labels, known)
    assert np.isfinite(by_features).all()


def test_pixels_are_drawn_from_those_allowed_without_repetition():
    allowed = jnp.arange(12) % 3 == 0
    drawn, exists = draw(jax.random.key(0), jnp.stack([allowed, ~allowed]), 6)
    assert set(drawn[0][exists[0]].tolist()) == {0, 3, 6, 9} and exists[0].sum() == 4
    assert exists[1].all() and len(set(drawn[1].tolist())) == 6 and (drawn[1] % 3 != 0).all()
    others, _ = draw(jax.random.key(1), jnp.stack([allowed, ~allowed]), 6)
    assert (others[1] != drawn[1]).any()


def step_of(golden):
    """A step of two images whose only predictions are those of the recording."""
    features, masks, labels, known = inputs(golden, 'main')
    num_images, num_queries = masks.shape[:2]
    # Embeddings beside features of which each holds the mask of one query.
    width = features.shape[-1]
    both = jnp.concatenate([features, jnp.moveaxis(masks, 1, -1)], axis=-1)
    embeddings = jnp.pad(jnp.eye(num_queries), ((0, 0), (width, 0)))
    sets = (1, num_images, num_queries)
    student = Predictions(
        class_logits=jnp.zeros((*sets, UNLABELLED)),
        mask_embeddings=jnp.broadcast_to(embeddings, (*sets, width + num_queries)),
        boxes=jnp.full((*sets, 4), 0.5),
        virtual_class_logits=jnp.zeros((1, num_images, 0, UNLABELLED)),
        mask_features=both,
        selection=Selection(None, None, None),
    )
    classes = np.unique(golden['gt'])[:-1]
    slots = np.searchsorted(classes, golden['gt']) + 1
    targets = Targets(
        segment_map=jnp.asarray(np.where(golden['gt'] == UNLABELLED, 0, slots), jnp.uint8),
        labels=jnp.broadcast_to(jnp.asarray(classes, jnp.int32), (num_images, len(classes))),
        boxes=jnp.full((num_images, len(classes), 4), 0.5),
        dropped=jnp.zeros(num_images, jnp.int32),
    )
    stage = StageArrays(known & False, known, jnp.int32(1), jnp.float32(1))
    return Step(
        stage=stage,
        batch=Batch(jnp.zeros((num_images, 64, 80, 3), jnp.uint8), targets),
        key=jax.random.key(0),
        rows=jnp.arange(num_images),
        targets=targets,
        student=student,
    ), labels


def test_the_class_map_shows_the_top_left_pixel_of_every_feature(golden):
    step, labels = step_of(golden)
    np.testing.assert_array_equal(class_map(step), labels)


@pytest.mark.slow
def test_the_terms_are_means_over_the_images_of_the_device_in_every_stage(golden, monkeypatch):
    monkeypatch.setattr(FuTCR.__mro__[1], 'losses', lambda self, step: {'class': 'kept'})
    step, _ = step_of(golden)
    terms = FuTCR(contrast_pixels=10**6, repulsion_pixels=10**6, contrast_weight=3.0).losses(step)
    assert terms['class'] == 'kept' and terms['contrast'].per == terms['repulsion'].per == 'image'
    features, masks, labels, known = inputs(golden, 'main')
    _, (contrast, repulsion, _, _) = jax.jit(losses)(
        step.student.mask_features, masks, labels, known
    )
    images, layers = 2, 2
    np.testing.assert_allclose(terms['contrast'].sum, 3.0 * contrast * images * layers, rtol=1e-5)
    np.testing.assert_allclose(
        terms['repulsion'].sum, 0.25 * repulsion * images * layers, rtol=1e-5
    )
