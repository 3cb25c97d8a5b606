import hashlib

import flax.traverse_util
import golden_weights
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from simcis_jax.model.mask2former import Mask2Former
from simcis_jax.port.torch_weights import to_flax, to_torch

PREDICTOR = 'sem_seg_head.predictor'


@pytest.fixture(scope='module')
def state():
    return golden_weights.published_state('S6:')


def parameter_shapes(backbone, num_classes=150, **kwargs):
    model = Mask2Former(num_classes, backbone=backbone, **kwargs)
    shapes = jax.eval_shape(model.init, jax.random.key(0), jnp.zeros((1, 128, 160, 3)))
    return {k: v.shape for k, v in flatten(shapes['params']).items()}


def flatten(params):
    return flax.traverse_util.flatten_dict(params, sep='/')


def zeros(shapes):
    """Arrays of zeros with these shapes, which take no memory."""
    return {key: np.broadcast_to(np.float32(0), shape) for key, shape in shapes.items()}


def test_drawn_weights_are_those_of_the_golden_arrays(state):
    digest = hashlib.sha256()
    for key in sorted(state):
        digest.update(key.encode() + state[key].tobytes())
    expected = '5d7791d47562dd98f4861bf003dc8e8815d05707120489ad7f4e8828fbb282a9'
    assert digest.hexdigest() == expected


@pytest.mark.parametrize(
    'backbone, blocks, num_keys',
    [('resnet50', 6, 627), pytest.param('resnet101', 23, 882, marks=pytest.mark.slow)],
)
def test_published_keys_map_to_exactly_the_parameters_of_the_model(backbone, blocks, num_keys):
    shapes = golden_weights.published_shapes(blocks)
    assert len(shapes) == num_keys
    params = to_flax(zeros(shapes))
    assert {k: v.shape for k, v in flatten(params).items()} == parameter_shapes(backbone)


def test_import_then_export_gives_the_same_bits(state):
    published = to_torch(to_flax(state))
    assert published.keys() == state.keys()
    for key, value in state.items():
        assert published[key].shape == value.shape and published[key].dtype == value.dtype
        assert published[key].tobytes() == value.tobytes(), key


def test_export_then_import_gives_the_same_bits():
    rng = np.random.default_rng(0)
    shapes = parameter_shapes('resnet50', num_classes=7, encoder_layers=2, decoder_layers=3)
    flat = {key: rng.random(shape, np.float32) for key, shape in shapes.items()}
    again = flatten(to_flax(to_torch(flax.traverse_util.unflatten_dict(flat, sep='/'))))
    assert again.keys() == flat.keys()
    for key, value in flat.items():
        np.testing.assert_array_equal(again[key], value, err_msg=key)


def test_in_proj_weight_is_split_into_query_key_and_value(state):
    attention = to_flax(state)['decoder']['layers_4']['cross_attention']
    rows = state[f'{PREDICTOR}.transformer_cross_attention_layers.4.multihead_attn.in_proj_weight']
    for i, name in enumerate(['query', 'key', 'value']):
        np.testing.assert_array_equal(
            attention[name]['kernel'].T, rows[256 * i : 256 * (i + 1)], err_msg=name
        )


@pytest.mark.parametrize('key', [
    'backbone.res4.3.conv2.norm.running_var',
    'sem_seg_head.pixel_decoder.transformer.encoder.layers.5.linear2.bias',
    f'{PREDICTOR}.transformer_ffn_layers.8.norm.weight',
    f'{PREDICTOR}.bbox_embed.8.layers.1.bias',
])  # fmt: skip
def test_a_missing_key_is_named(key):
    state = zeros(golden_weights.published_shapes())
    del state[key]
    with pytest.raises(ValueError, match=f'1 published keys are missing: {key};'):
        to_flax(state)


def test_at_most_twenty_unknown_keys_are_listed():
    state = zeros(golden_weights.published_shapes())
    state |= dict.fromkeys([f'x{i:02}' for i in reversed(range(22))], np.zeros(1))
    listed = ', '.join(f'x{i:02}' for i in range(20))
    with pytest.raises(ValueError, match=f'22 published keys have .*: {listed} and 2 more;'):
        to_flax(state)


def test_an_absurd_layer_number_is_an_unknown_key():
    key = 'backbone.res4.99999999999.conv1.weight'
    state = zeros(golden_weights.published_shapes()) | {key: np.zeros(1)}
    with pytest.raises(ValueError, match=f'1 published keys have no counterpart: {key};'):
        to_flax(state)


def test_different_copies_of_the_box_head_are_an_error():
    state = zeros(golden_weights.published_shapes())
    key = f'{PREDICTOR}.bbox_embed.3.layers.1.bias'
    state[key] = np.ones(256, np.float32)
    with pytest.raises(ValueError, match=f'{key} differs'):
        to_flax(state)


@pytest.mark.slow
def test_a_model_with_learned_queries_cannot_be_exported():
    shapes = parameter_shapes('resnet50', queries='learned')
    params = flax.traverse_util.unflatten_dict(zeros(shapes), sep='/')
    with pytest.raises(ValueError, match='4 parameters are missing.*query_prealignment/norm'):
        to_torch(params)
