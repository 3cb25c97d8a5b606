import golden_weights
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from simcis_jax.losses.consistent_selection import (
    consistent_selection_loss,
    distribution_divergence,
)


@pytest.mark.parametrize('temperature', [1, 4])
def test_divergence_equals_the_published_code(temperature):
    golden = golden_weights.load('components')
    divergence = distribution_divergence(golden['kd/teacher'], golden['kd/student'], temperature)
    num_images = 2
    expected = golden[f'kd/kl_all_T{temperature}']
    np.testing.assert_allclose(divergence / num_images, expected, rtol=1e-5)


def random_case():
    keys = jax.random.split(jax.random.key(0))
    return jax.random.normal(keys[0], (2, 3, 5)) * 4, jax.random.normal(keys[1], (2, 3, 5)) * 4


def softmax(x):
    x = np.exp(np.asarray(x, np.float64))
    return x / x.sum()


def test_loss_equals_a_plain_loop():
    tokens, teacher = random_case()
    expected = 0.0
    for image in range(2):
        for query in range(3):
            p = softmax(teacher[image, query] / 2)
            q = softmax(tokens[image, query] / 2)
            expected += sum(a * (np.log(a) - np.log(b)) for a, b in zip(p, q, strict=True))
    loss = consistent_selection_loss(tokens, teacher, 2.0)
    np.testing.assert_allclose(loss, expected, rtol=1e-5)


def test_a_student_equal_to_its_teacher_has_zero_loss():
    tokens, _ = random_case()
    teacher = tokens + 3.0  # Softmax ignores the offset.
    np.testing.assert_allclose(consistent_selection_loss(tokens, teacher), 0, atol=1e-5)


def test_only_the_student_gets_a_gradient():
    to_student, to_teacher = jax.grad(consistent_selection_loss, argnums=(0, 1))(*random_case())
    assert to_student.any() and not to_teacher.any()


def test_extreme_logits_give_a_finite_loss_and_gradient():
    teacher, student = jnp.array([[1e4, -1e4]]), jnp.array([[-1e4, 1e4]])
    loss, gradient = jax.value_and_grad(distribution_divergence, argnums=1)(teacher, student)
    np.testing.assert_allclose(loss, 2e4)
    assert jnp.isfinite(gradient).all()
