"""PLOP against the published local POD and pseudo-labels, and on cases that are known by hand."""

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from recorded_pseudo_labels import assert_published

from simcis_jax.continual.pseudo_labels import add_pseudo_labels
from simcis_jax.losses.local_pod import local_pod, pooled
from simcis_jax.methods import base
from simcis_jax.methods.plop import PLOP
from simcis_jax.methods.pseudo_label import PseudoLabel
from simcis_jax.methods.step import Step
from simcis_jax.model.class_logits import without_unseen
from simcis_jax.types import Predictions, Selection, StageArrays, Targets

GOLDEN = Path(__file__).parent / 'golden' / 'plop.npz'
SLOTS = 6


@pytest.fixture(scope='module')
def golden():
    return dict(np.load(GOLDEN))


def maps_of(golden, case, kind):
    names = sorted(name for name in golden if name.startswith(f'pod_{case}/{kind}'))
    return [jnp.asarray(np.moveaxis(golden[name], 1, -1)) for name in names]


@jax.jit
def pod(student, teacher):
    return jax.value_and_grad(lambda student: local_pod(student, teacher).mean())(student)


@pytest.mark.parametrize('case', ['square', 'not_divisible', 'equal'])
def test_local_pod_and_its_gradient_are_those_of_the_published_code(golden, case):
    loss, gradients = pod(maps_of(golden, case, 'new'), maps_of(golden, case, 'old'))
    np.testing.assert_allclose(loss, golden[f'pod_{case}/loss'], rtol=1e-5)
    recorded = maps_of(golden, case, 'grad')
    for ours, theirs in zip(gradients, recorded, strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-4, atol=1e-4 * np.abs(theirs).max())


def test_what_is_pooled_is_that_of_the_published_code(golden):
    for case in ('square', 'not_divisible', 'equal'):  # In another order, which has no effect.
        ours, theirs = pooled(maps_of(golden, case, 'new')[0]), golden[f'pod_{case}/embedding0']
        np.testing.assert_allclose(np.sort(ours), np.sort(theirs), rtol=1e-5, atol=1e-6)


def test_maps_that_are_wide_or_smaller_than_the_grid_have_finite_losses(golden):
    assert np.isnan(golden['pod_wide/loss'])
    small = jnp.arange(24.0).reshape(1, 2, 3, 4)
    assert pooled(small).shape == (1, (2 + 3) * 4 + 4 * (1 + 1) * 4)
    student = [*maps_of(golden, 'wide', 'new'), small]
    teacher = [*maps_of(golden, 'wide', 'old'), 2 * small]
    loss, gradients = pod(student, teacher)
    assert loss > 0 and all(np.isfinite(x).all() and x.any() for x in gradients)


def test_the_term_is_weighted_by_the_share_of_new_classes(golden, monkeypatch):
    basic = {'class': jnp.ones(2)}
    monkeypatch.setattr(base, 'segmentation_losses', lambda *_, **__: basic)
    classes = jnp.arange(20)
    stage = StageArrays(classes < 12, (classes >= 12) & (classes < 16), 1, 1.0)
    student, teacher = (with_maps(maps_of(golden, 'square', kind)) for kind in ('new', 'old'))
    step = Step(
        stage=stage, student=student, teacher=teacher, key=jax.random.key(0), rows=jnp.arange(2)
    )
    terms = PLOP(pod_weight=3.0).losses(step)
    assert terms.keys() == {'class', 'pod'}
    assert (terms['pod'].weight, terms['pod'].per) == (3.0, 'image')
    # Half of the root of 4 / 16, of two images, and the fourth map is equal.
    np.testing.assert_allclose(
        terms['pod'].sum, 0.5 * 2 * golden['pod_square/loss'] * 3 / 4, rtol=1e-5
    )
    assert PLOP().losses(step.replace(teacher=None)).keys() == {'class'}


def with_maps(maps):
    """Predictions that have nothing but maps; the mask features are 0."""
    return Predictions(
        class_logits=None,
        mask_embeddings=None,
        boxes=None,
        virtual_class_logits=None,
        mask_features=jnp.zeros((2, 4, 4, 3)),
        selection=Selection(None, None, None),
        features={'backbone': tuple(maps), 'pixel_decoder': ()},
    )


# Pseudo-labels


@jax.jit
def add(class_logits, mask_logits, targets, past):
    logits = without_unseen(class_logits, past)
    return add_pseudo_labels(logits, mask_logits, targets, past, rule=PLOP().rule, head='softmax')


@pytest.mark.parametrize('image', [0, 1])
def test_pseudo_labels_are_those_of_the_published_code(golden, image):
    assert_published(golden, 'sigmoid_boxes', image, SLOTS, add)


def test_pixels_won_outside_of_the_mask_count_but_are_not_in_the_segment():
    inside, outside = 3.0, -0.4  # The mask is the first row, but nobody else competes below.
    mask = jnp.full((4, 4), outside).at[0].set(inside)
    truth = jnp.zeros((4, 4), jnp.uint8).at[0, :3].set(1)
    targets = Targets(truth, jnp.array([1, -1, -1]), jnp.zeros((3, 4)), jnp.int32(0))
    logits = jnp.array([[4.0, 0.0, 0.0]])
    past = jnp.array([True, False])
    found = add(logits, mask[None], targets, past)
    assert found.labels.tolist() == [1, 0, -1]
    assert np.argwhere(found.segment_map == 2).tolist() == [[0, 3]]
    strict = PseudoLabel(pseudo_label_score=0.0, pseudo_label_overlap=0.5).rule
    kept = add_pseudo_labels(logits, mask[None], targets, past, rule=strict, head='softmax')
    assert kept.labels.tolist() == [1, -1, -1]
