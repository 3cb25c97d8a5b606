"""What is kept for the backward pass, and until when."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax.ad_checkpoint import print_saved_residuals
from random_params import random_params
from traced import equations

from simcis_jax.model.pixel_decoder import EncoderLayer, grid_centres
from simcis_jax.model.saved_for_backward import MARK, MARKED_ONLY, backward_at_once

BATCH, DIM, HIDDEN, HEADS, POINTS = 2, 16, 64, 4, 2
SHAPES = (2, 3), (4, 6)
NUM_TOKENS = sum(h * w for h, w in SHAPES)


def test_an_encoder_layer_keeps_what_the_backward_pass_could_not_cheaply_compute_again(capsys):
    layer = nn.remat(EncoderLayer, static_argnums=4, policy=MARKED_ONLY)(HEADS, HIDDEN, POINTS)
    tokens, positions = jnp.ones((BATCH, NUM_TOKENS, DIM)), jnp.ones((NUM_TOKENS, DIM))
    inputs = positions, grid_centres(SHAPES)
    params = random_params(lambda *args: layer.init(*args, SHAPES), tokens, *inputs)
    print_saved_residuals(lambda *args: layer.apply(*args, *inputs, SHAPES), params, tokens)
    lines = capsys.readouterr().out.splitlines()
    kept = sorted(line.split()[0] for line in lines if f"named '{MARK}'" in line)
    rows, points = f'{BATCH},{NUM_TOKENS}', f'{HEADS},{len(SHAPES)},{POINTS}'
    assert kept == sorted(
        [
            f'f32[{rows},{DIM}]',  # What the points are sampled from.
            f'f32[{rows},{2 * HEADS * len(SHAPES) * POINTS}]',  # The offsets of the points.
            f'f32[{rows},{points}]',  # Their weights.
            f'f32[{rows},{DIM}]',  # The weighted samples.
            f'f32[{BATCH * NUM_TOKENS},{HIDDEN}]',  # The hidden features of the FFN.
            *[f'f32[{rows},{DIM}]', f'f32[{rows},1]'] * 2,  # Two times normalised rows.
        ]
    )
    others = [line for line in lines if MARK not in line and 'from the argument' not in line]
    assert all('from a constant' in line for line in others), others


class TwoLayers(nn.Module):
    """Layers of which the second may have a backward pass of its own."""

    at_once: bool

    def setup(self):
        self.first, self.second = nn.Dense(DIM), nn.Dense(DIM)

    def __call__(self, x, shift):
        second = backward_at_once(TwoLayers.of_second) if self.at_once else TwoLayers.of_second
        return second(self, jnp.tanh(self.first(x)), shift)

    def of_second(self, x, shift):
        return jnp.sin(self.second(x)) + shift


def gradients(at_once):
    """A function that computes the gradients of `TwoLayers`, and its arguments."""
    x, shift = jax.random.normal(jax.random.key(0), (2, 3, DIM))
    params = random_params(TwoLayers(at_once).init, x, shift)

    def loss(*arguments):
        return (TwoLayers(at_once).apply(*arguments) ** 2).sum()

    return jax.grad(loss, argnums=(0, 1, 2)), (params, x, shift)


def test_a_backward_pass_at_once_has_the_same_gradients():
    results = []
    for at_once in (False, True):
        function, arguments = gradients(at_once)
        results.append(jax.jit(function)(*arguments))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6), *results)


def test_a_backward_pass_at_once_ends_before_that_of_its_inputs_begins():
    function, arguments = gradients(at_once=True)
    barriers = list(equations(jax.make_jaxpr(function)(*arguments).jaxpr, 'optimization_barrier'))
    # The gradients of kernel, bias and both inputs leave together.
    shapes = [sorted(x.aval.shape for x in barrier.outvars) for barrier in barriers]
    needed = {(DIM, DIM), (DIM,), (3, DIM)}
    assert any(needed <= set(found) and found.count((3, DIM)) == 2 for found in shapes), shapes
