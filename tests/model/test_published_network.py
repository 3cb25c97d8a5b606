"""The whole network against arrays that the published code computed with the same weights."""

import functools
from types import SimpleNamespace

import golden_weights
import jax
import numpy as np
import pytest

from simcis_jax.model.mask2former import Mask2Former
from simcis_jax.model.masked_decoder import attention_mask, decoder_memory
from simcis_jax.port.torch_weights import to_flax

TOLERANCE = 2e-5  # Norm of the difference over norm; two float32 runs differ by 2e-6.


@functools.partial(jax.jit, static_argnums=0)
def run(model, params, image, **inputs):
    """Outputs, everything the modules returned, and the keys every prediction set may attend to."""
    outputs, state = model.apply(
        {'params': params}, image, **inputs, capture_intermediates=True, mutable=['intermediates']
    )
    inner = state['intermediates']
    maps, mask_features = inner['pixel_decoder']['__call__'][0]
    memory = decoder_memory(maps, params['level_embedding'], mask_features)
    sets = inner['decoder']['__call__']
    allowed = [
        [attention_mask(x, memory.mask_features[i % 3]) for i, x in enumerate(s.mask_embeddings)]
        for s in sets
    ]
    return outputs, inner, allowed


def weights(salt, backbone):
    blocks = {'resnet50': 6, 'resnet101': 23}[backbone]
    return to_flax(golden_weights.published_state(salt, blocks))


def padded(images):
    """Images [B, h, w, 3] in the corner of a noisy canvas with sides that are multiples of 32."""
    batch, height, width, _ = images.shape
    canvas = np.full((batch, -(-height // 32) * 32, -(-width // 32) * 32, 3), 77, np.uint8)
    canvas[:, :height, :width] = images
    return canvas, np.array([[height, width]] * batch)


def observe(name, backbone, salt):
    """Runs the network on the images of a file; its arrays under the names used in the file."""
    golden = golden_weights.load(name)
    image, size = padded(np.moveaxis(golden['input/images'], 1, -1))
    inputs = {'size': size}
    if 'vq/queries' in golden:
        inputs['virtual_queries'] = golden['vq/queries']
        inputs['replay_positions'] = golden['teacher/topk']
        inputs['replay_box_positions'] = golden['sel/topk']
    model = Mask2Former(150, backbone=backbone)
    ran = run(model, weights(salt, backbone), image, **inputs)
    outputs, inner, allowed = jax.device_get(ran)
    predictions, *_ = outputs if 'vq/queries' in golden else (outputs,)

    def channels_first(x):
        return np.moveaxis(x, -1, 1)

    encoder = inner['pixel_decoder']
    attention = encoder['layer0']['attention']
    maps, mask_features = encoder['__call__'][0]
    mask_features = channels_first(mask_features)
    candidates = inner['query_prealignment']['__call__'][0]
    arrays = {
        'mask_features': mask_features,
        'enc/layer0/value': attention['value']['__call__'][0],
        'enc/layer0/sampling_offsets': attention['offsets']['__call__'][0],
        'enc/layer0/attention_logits': attention['weights']['__call__'][0],
        'enc/layer0/msdeform_out': attention['__call__'][0],
        'enc/layer0': encoder['layer0']['__call__'][0],
        'enc/layer5': encoder['layer5']['__call__'][0],
        'sel/output_memory': candidates.features,
        'sel/class_logits': candidates.class_logits,
        'sel/topk': predictions.selection.positions,
        'interm/pred_boxes': predictions.boxes[0],
    }
    arrays |= {f'multi_scale{i}': channels_first(x) for i, x in enumerate(maps)}
    arrays |= {
        f'backbone/res{i}': channels_first(x)
        for i, x in enumerate(inner['resnet']['__call__'][0], start=2)
    }
    names = ['interm', *(f'layer{i}' for i in range(9))]
    for part, prefix in enumerate(['dec/', 'dec/distill/'][: len(allowed)]):
        sets = inner['decoder']['__call__'][part]
        for i, layer in enumerate(names):
            masks = np.einsum(
                'bqd,bdhw->bqhw', sets.mask_embeddings[i], mask_features, optimize=True
            )
            arrays[f'{prefix}{layer}/logits'] = sets.class_logits[i]
            arrays[f'{prefix}{layer}/masks'] = masks
            arrays[f'{prefix}{layer}/boxes'] = sets.boxes[i]
            arrays[f'{prefix}{layer}/allowed'] = allowed[part][i]
            if part == 0:
                arrays[f'vqrows/{layer}/logits'] = predictions.virtual_class_logits[i]
        arrays[f'{prefix}refpoint_in'] = sets.boxes[0]
        for i in range(9):
            modules = inner['decoder'][f'layers_{i}']
            queries, virtual = modules['__call__'][part]
            arrays[f'{prefix}layer{i}/query'] = np.concatenate([queries, virtual], axis=1)
            arrays[f'{prefix}layer{i}/after_self'] = modules['self_attention']['__call__'][part]
            arrays[f'{prefix}layer{i}/after_cross'] = modules['cross_attention']['__call__'][part]
            if part == 0:
                arrays[f'vqrows/layer{i}/query'] = virtual
    return SimpleNamespace(golden=golden, arrays=arrays)


def thinned(array, stride):
    return array[tuple(slice(None, None, s) for s in stride)]


def relative_error(actual, expected):
    return np.linalg.norm(actual - expected) / np.linalg.norm(expected)


@pytest.fixture(
    scope='module',
    params=[
        ('eval_t1_r50', 'resnet50', 'S6:'),
        ('eval_t2_r50_odd', 'resnet50', 'S14:'),
        pytest.param(('eval_t1_r50_wide', 'resnet50', 'S6:'), marks=pytest.mark.slow),
        pytest.param(('eval_t1_r101_sem', 'resnet101', 'S6:'), marks=pytest.mark.slow),
        ('train_t2_pan_100-5', 'resnet50', 'S6:'),
    ],
    ids=lambda param: param[0],
)
def observed(request):
    return observe(*request.param)


def test_the_published_positions_are_selected(observed):
    np.testing.assert_array_equal(observed.arrays['sel/topk'], observed.golden['sel/topk'])


def test_queries_attend_where_the_published_ones_do(observed):
    keys = [key for key in observed.golden if key.endswith('attn_blocked_packed')]
    assert len(keys) in (10, 20)
    for key in keys:
        layer = key.removesuffix('/attn_blocked_packed')
        allowed = observed.arrays[f'{layer}/allowed']
        _, num_queries, num_keys = allowed.shape  # Virtual queries have no mask.
        bits = np.unpackbits(observed.golden[key], axis=-1)[:, :num_queries, :num_keys]
        opened = observed.golden[f'{layer}/attn_row_all_blocked'][:, :num_queries, None]
        np.testing.assert_array_equal(allowed, (bits == 0) | opened, err_msg=key)


def test_activations_are_the_published_ones(observed):
    keys = [key.removesuffix('.stride') for key in observed.golden if key.endswith('.stride')]
    keys = [key for key in keys if not key.startswith('teacher/')]
    assert len(keys) >= 55
    errors = {}
    for key in keys:
        actual = thinned(observed.arrays[key], observed.golden[f'{key}.stride'])
        expected = observed.golden[key]
        if key.endswith(('masks', 'boxes')):  # The published code keeps useless virtual rows.
            expected = expected[:, : actual.shape[1]]
        assert actual.shape == expected.shape, key
        errors[key] = relative_error(actual, expected)
    assert max(errors.values()) < TOLERANCE, max(errors, key=errors.get)


def test_the_teacher_predicts_as_published():
    golden = golden_weights.load('train_t2_pan_100-5')
    image, size = padded(np.moveaxis(golden['input/images'], 1, -1))
    params = weights('S13:', 'resnet50')
    predictions, _, _ = run(Mask2Former(150), params, image, size=size)
    np.testing.assert_array_equal(predictions.selection.positions, golden['teacher/topk'])
    for key, actual in {
        'teacher/interm_logits': predictions.class_logits[0],
        'teacher/pred_logits': predictions.class_logits[-1],
        'teacher/pred_boxes': predictions.boxes[-1],
    }.items():
        actual = thinned(np.asarray(actual), golden[f'{key}.stride'])
        assert relative_error(actual, golden[key]) < TOLERANCE, key
