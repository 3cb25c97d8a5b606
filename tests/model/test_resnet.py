import golden_weights
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from simcis_jax.model.backbones import make_backbone
from simcis_jax.model.resnet import FrozenBatchNorm


def frozen_batch_norm():
    golden = golden_weights.load('components')
    names = {'scale': 'weight', 'bias': 'bias', 'mean': 'running_mean', 'variance': 'running_var'}
    params = {f'frozen_{ours}': golden[f'frozen_bn/{name}'] for ours, name in names.items()}
    return params, np.moveaxis(golden['frozen_bn/x'], 1, -1), golden['frozen_bn/out']


def test_frozen_batch_norm_equals_the_published_code():
    params, x, expected = frozen_batch_norm()
    actual = FrozenBatchNorm().apply({'params': params}, x)
    np.testing.assert_allclose(np.moveaxis(actual, -1, 1), expected, rtol=1e-5, atol=1e-6)


def test_frozen_batch_norm_gets_no_gradient():
    params, x, _ = frozen_batch_norm()
    gradient = jax.grad(lambda p: (FrozenBatchNorm().apply({'params': p}, x) ** 2).sum())(params)
    assert all((np.asarray(g) == 0).all() for g in gradient.values())


@pytest.mark.parametrize(
    'name, strides, widths',
    [
        ('resnet50', (4, 8, 16, 32), (256, 512, 1024, 2048)),
        ('resnet101', (4, 8, 16, 32), (256, 512, 1024, 2048)),
        ('small', (2, 4, 8, 16), (32, 64, 96, 128)),
        ('small_stride4', (4, 8, 16, 32), (32, 64, 128, 192)),
    ],
)
def test_maps_are_ordered_finest_first(name, strides, widths):
    image = jnp.zeros((1, 64, 96, 3))
    maps = jax.eval_shape(lambda: make_backbone(name).init_with_output(jax.random.key(0), image)[0])
    expected = [(1, 64 // s, 96 // s, w) for s, w in zip(strides, widths, strict=True)]
    assert [x.shape for x in maps] == expected


def test_an_unknown_backbone_is_an_error_that_lists_the_known_ones():
    with pytest.raises(ValueError, match="model.backbone='resnet' is unknown; one of .*'small'"):
        make_backbone('resnet')
