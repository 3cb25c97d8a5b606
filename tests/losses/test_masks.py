import golden_weights
import jax.numpy as jnp
import numpy as np

from simcis_jax.losses.masks import dice, dice_of_pairs, mask_losses_at
from simcis_jax.losses.point_sampling import sample_map


def test_mask_losses_equal_the_published_code():
    golden = golden_weights.load('components')
    columns = (jnp.arange(40) + 0.5) / 40
    points = jnp.stack([columns, jnp.full(40, 0.5)], axis=-1)  # The centres of one row of pixels.
    rows = zip(golden['loss/logits'], golden['loss/targets'], strict=True)
    terms = [mask_losses_at(points, x[None], sample_map(y[None], points)) for x, y in rows]
    cross_entropy, dice = map(sum, zip(*terms, strict=True))
    np.testing.assert_allclose(cross_entropy / 3, golden['loss/bce'], rtol=1e-5)
    np.testing.assert_allclose(dice / 3, golden['loss/dice'], rtol=1e-5)


def test_dice_of_pairs_is_dice_of_every_pair():
    rng = np.random.default_rng(0)
    p, truth = rng.random((9, 4), np.float32), rng.random((9, 3), np.float32).round()
    expected = [[dice(p[:, q], truth[:, t]) for t in range(3)] for q in range(4)]
    np.testing.assert_allclose(dice_of_pairs(p, truth), expected, rtol=1e-6)


def test_two_empty_masks_have_dice_one():
    assert dice(jnp.zeros(5), jnp.zeros(5)) == 1
