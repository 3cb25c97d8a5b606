"""Classes in doubt, and the class loss without them."""

import jax
import jax.numpy as jnp
import numpy as np

from simcis_jax.continual.doubt import doubtful_classes, without_doubt
from simcis_jax.losses.classification import focal_loss

PAST = jnp.array([True, True, True, False])


def test_past_classes_above_the_score_without_a_target_are_in_doubt():
    logits = np.full((2, 3, 4), -5.0, np.float32)
    logits[0, 1, 0] = logits[0, 2, 3] = logits[1, 0, 2] = logits[1, 2, 1] = 0  # Probability 0.5.
    logits[0, 0, 1] = -3  # 0.047
    labels = jnp.array([[3, -1], [1, 3]])
    doubtful = doubtful_classes(jnp.asarray(logits), labels, PAST, 0.1)
    np.testing.assert_array_equal(doubtful, [[1, 0, 0, 0], [0, 0, 1, 0]])
    doubtful = doubtful_classes(jnp.asarray(logits), labels, PAST, 0.04)
    np.testing.assert_array_equal(doubtful, [[1, 1, 0, 0], [0, 0, 1, 0]])


def test_doubt_removes_loss_and_gradient_of_unmatched_queries_alone():
    rng = np.random.default_rng(0)
    logits = jnp.asarray(rng.normal(size=(2, 1, 3, 4)), jnp.float32)
    matched = jnp.array([[[-1, 0, 3]], [[2, -1, -1]]])
    doubtful = jnp.array([[True, False, False, False]])

    def loss(logits):
        return focal_loss(logits.reshape(-1, 4), matched.reshape(-1))

    def loss_in_doubt(logits):
        return loss(without_doubt(logits, matched, doubtful))

    value, gradient = jax.value_and_grad(loss_in_doubt)(logits)
    expected = np.array(jax.grad(loss)(logits))
    ignored = np.broadcast_to((matched < 0)[..., None] & doubtful[:, None], logits.shape)
    assert ignored.sum() == 3 and (expected[ignored] > 0).all()
    np.testing.assert_allclose(gradient, np.where(ignored, 0, expected), rtol=1e-6)
    assert np.isfinite(value) and value < loss(logits)
