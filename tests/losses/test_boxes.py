import golden_weights
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from simcis_jax.losses.boxes import generalized_iou, to_corners


def test_corners_are_half_a_size_from_the_centre():
    np.testing.assert_allclose(to_corners(jnp.array([0.5, 0.4, 0.2, 0.6])), [0.4, 0.1, 0.6, 0.7])


def test_giou_equals_the_published_code():
    golden = golden_weights.load('components')
    giou = generalized_iou(golden['giou/a'][:, None], golden['giou/b'])
    np.testing.assert_allclose(giou, golden['giou/matrix'], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    'a, b, expected',
    [
        ([0.5, 0.5, 0.4, 0.4], [0.5, 0.5, 0.4, 0.4], 1.0),
        ([0.5, 0.5, 1.0, 1.0], [0.25, 0.5, 0.5, 1.0], 0.5),  # One half of the other.
        ([0.1, 0.5, 0.2, 1.0], [0.9, 0.5, 0.2, 1.0], -0.6),  # 0.6 of the enclosing box is empty.
        ([0.2, 0.5, 0.4, 1.0], [0.6, 0.5, 0.4, 1.0], 0.0),  # They touch.
    ],
)
def test_giou_of_simple_boxes(a, b, expected):
    np.testing.assert_allclose(generalized_iou(jnp.array(a), jnp.array(b)), expected, atol=1e-5)


def test_giou_is_symmetric():
    a, b = jax.random.uniform(jax.random.key(0), (2, 50, 4))
    np.testing.assert_allclose(generalized_iou(a, b), generalized_iou(b, a), atol=1e-6)


def test_giou_of_empty_boxes_and_its_gradient_are_finite():
    empty = jnp.zeros(4)
    for other in (empty, jnp.array([0.5, 0.5, 0.0, 0.3]), jnp.array([0.5, 0.5, 0.2, 0.3])):
        value, gradient = jax.value_and_grad(generalized_iou)(other, empty)
        assert jnp.isfinite(value) and jnp.isfinite(gradient).all()
