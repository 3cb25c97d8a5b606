import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from simcis_jax.model.repeated_layers import in_turn


class Layer(nn.Module):
    @nn.compact
    def __call__(self, x, shift):
        return jnp.tanh(nn.Dense(x.shape[-1], name='dense')(x) + shift)


class Stack(nn.Module):
    repeat: bool

    @nn.compact
    def __call__(self, x, shift):
        layers = [Layer(name=f'layer{i}') for i in range(3)]
        if self.repeat:
            return in_turn(layers, x, shift)
        for layer in layers:
            x = layer(x, shift)
        return x


X, SHIFT = jax.random.normal(jax.random.key(0), (2, 5)), jnp.arange(5) / 10


def test_outputs_and_gradients_are_those_of_the_layers_one_by_one():
    parameters = Stack(False).init(jax.random.key(1), X, SHIFT)
    jax.tree.map(
        np.testing.assert_array_equal, Stack(True).init(jax.random.key(1), X, SHIFT), parameters
    )

    def result_and_gradients(repeat):
        def loss(parameters, x, shift):
            y = Stack(repeat).apply(parameters, x, shift)
            return jnp.sum(y**2), y

        return jax.grad(loss, argnums=(0, 1, 2), has_aux=True)(parameters, X, SHIFT)

    jax.tree.map(
        lambda ours, expected: np.testing.assert_allclose(ours, expected, rtol=1e-5, atol=1e-6),
        result_and_gradients(True),
        result_and_gradients(False),
    )


def test_a_program_contains_one_layer():
    parameters = Stack(True).init(jax.random.key(1), X, SHIFT)
    program = jax.jit(Stack(True).apply).lower(parameters, X, SHIFT).as_text()
    assert program.count('stablehlo.dot_general') == 1


def test_results_of_every_layer_can_be_captured():
    parameters = Stack(True).init(jax.random.key(1), X, SHIFT)
    y, captured = Stack(True).apply(
        parameters, X, SHIFT, capture_intermediates=True, mutable=['intermediates']
    )
    assert captured['intermediates'].keys() == {'layer0', 'layer1', 'layer2', '__call__'}
    np.testing.assert_array_equal(captured['intermediates']['layer2']['__call__'][0], y)
