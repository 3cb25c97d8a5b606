"""Parameters of the published networks, small enough to write and read many times."""

import functools

import jax
import jax.numpy as jnp
import numpy as np

from simcis_jax.model.mask2former import Mask2Former
from simcis_jax.port.names import PIXEL_DECODER, RESNET, Layout
from simcis_jax.port.torch_weights import to_torch


def shrunken_params(num_classes, backbone, width):
    """Parameters with the names of the full network, every axis cut to at most `width`."""
    model = Mask2Former(num_classes, backbone, encoder_layers=2, decoder_layers=2)
    shapes = jax.eval_shape(model.init, jax.random.key(0), jnp.zeros((1, 160, 160, 3)))['params']
    rng = np.random.default_rng(0)
    params = jax.tree.map(
        lambda x: rng.normal(size=[min(n, width) for n in x.shape]).astype(np.float32), shapes
    )
    class_head = params['heads']['class_head']['dense']
    class_head['kernel'] = rng.random((width, num_classes), np.float32)
    return params


@functools.cache
def encoder():
    """Parameters of backbone and pixel decoder, and the same by their published names."""
    params = shrunken_params(1, 'resnet50', 2)
    params = {name: params[name] for name in ('resnet', 'pixel_decoder')}
    return params, to_torch(params, Layout('encoder', RESNET + PIXEL_DECODER))
