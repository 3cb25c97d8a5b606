"""The published network, built and run here: what it computes, under the published names."""

import functools

import golden_weights
import jax
import numpy as np
import parity

from simcis_jax.model.mask2former import Mask2Former, normalize
from simcis_jax.model.masked_decoder import attention_mask, decoder_memory
from simcis_jax.model.pixel_decoder import grid_centres
from simcis_jax.model.position_encoding import encode_grid
from simcis_jax.model.query_prealignment import proposals
from simcis_jax.port.torch_weights import to_flax

NUM_CLASSES, NUM_QUERIES, NUM_LAYERS = 150, 100, 9
BLOCKS = {'resnet50': 6, 'resnet101': 23}  # Of res4.
# Names of what is compared as activations; virtual queries have rows of their own.
ACTIVATIONS = (
    'image',
    'backbone/',
    'enc/',
    'mask_features',
    'multi_scale',
    'sel/',
    'interm/',
    'dec/',
    'vqrows/',
)
SETS = ('interm', *(f'layer{i}' for i in range(NUM_LAYERS)))


def network(backbone='resnet50'):
    """With the published choice of boxes for the replayed queries."""
    return Mask2Former(NUM_CLASSES, backbone=backbone, replay_own_boxes=True)


@functools.lru_cache(maxsize=2)
def weights(salt, backbone='resnet50'):
    """Parameters that the golden files were computed with."""
    return to_flax(golden_weights.published_state(salt, BLOCKS[backbone]))


def padded(images):
    """Images [B, 3, h, w] in the corner of a noisy canvas, its sides multiples of 32; their size"""
    images = np.moveaxis(images, 1, -1)
    batch, height, hidden_dim, _ = images.shape
    canvas = np.full((batch, -(-height // 32) * 32, -(-hidden_dim // 32) * 32, 3), 77, np.uint8)
    canvas[:, :height, :hidden_dim] = images
    return canvas, np.array([[height, hidden_dim]] * batch)


@functools.partial(jax.jit, static_argnums=0)
def run(model, params, image, size, virtual_queries=None, replay_positions=None):
    """Outputs, everything that the modules returned, and what the decoder attends to."""
    outputs, state = model.apply(
        {'params': params},
        image,
        None,
        virtual_queries,
        size=size,
        replay_positions=replay_positions,
        capture_intermediates=True,
        mutable=['intermediates'],
    )
    inner = state['intermediates']
    maps, mask_features = inner['pixel_decoder']['__call__'][0]
    return outputs, inner, decoder_memory(maps, params['level_embedding'], mask_features)


def tokens_of(maps):
    """Maps [B, h, w, D] as tokens [B, S, D], one map after the other."""
    return np.concatenate([x.reshape(len(x), -1, x.shape[-1]) for x in maps], axis=1)


def channels_first(x):
    """[B, h, w, D] -> [B, D, h, w]."""
    return np.moveaxis(x, -1, 1)


def backbone_and_pixel_decoder(params, image, size, inner):
    """Arrays of the first half of the network."""
    encoder = inner['pixel_decoder']
    attention = encoder['layer0']['attention']
    maps, mask_features = encoder['__call__'][0]
    shapes = [x.shape[1:3] for x in maps]
    batch, hidden_dim = len(image), mask_features.shape[-1]
    positions = [
        encode_grid(shape, hidden_dim).reshape(-1, hidden_dim) + embedding
        for shape, embedding in zip(shapes, params['pixel_decoder']['level_embed'], strict=True)
    ]
    positions, references = np.concatenate(positions), grid_centres(tuple(shapes))
    arrays = {
        'image': channels_first(normalize(image, size)),
        'mask_features': channels_first(mask_features),
        'enc/src': tokens_of([encoder[f'input_norm{k}']['__call__'][0] for k in range(3)]),
        'enc/pos': np.broadcast_to(positions, (batch, *positions.shape)),
        # The published code repeats them for each of the three maps.
        'enc/reference_points': np.tile(references[None, :, None], (batch, 1, 3, 1)),
        'enc/layer0/value': attention['value']['__call__'][0],
        'enc/layer0/sampling_offsets': attention['offsets']['__call__'][0],
        'enc/layer0/attention_logits': attention['weights']['__call__'][0],
        'enc/layer0/msdeform_out': attention['__call__'][0],
    }
    arrays |= {f'enc/layer{i}': encoder[f'layer{i}']['__call__'][0] for i in range(6)}
    arrays |= {f'multi_scale{i}': channels_first(x) for i, x in enumerate(maps)}
    stages = inner['resnet']['__call__'][0]
    return arrays | {f'backbone/res{i}': channels_first(x) for i, x in enumerate(stages, start=2)}


def selection(predictions, virtual_queries, inner, memory):
    """Arrays of query pre-alignment."""
    maps, _ = inner['pixel_decoder']['__call__'][0]
    references, valid = proposals(tuple(x.shape[1:3] for x in maps))
    candidates = inner['query_prealignment']['__call__'][0]
    scores = candidates.class_logits.max(axis=-1)
    features = np.concatenate(memory.tokens, axis=1)
    return {
        'sel/feats': features,
        'sel/masked_memory': np.where(valid[:, None], features, 0),
        'sel/proposals_logit': np.broadcast_to(references, (*scores.shape, 4)),
        'sel/output_memory': candidates.features,
        'sel/class_logits': candidates.class_logits,
        'sel/max_logit': scores,
        'sel/topk': predictions.selection.positions,
        'sel/query': np.concatenate([predictions.selection.queries, virtual_queries], axis=1),
        'interm/pred_boxes': predictions.boxes[0],
    }


def decoder(part, inner, memory, mask_features):
    """Arrays of one pass of the decoder, without the name of the pass."""
    modules, sets = inner['decoder'], inner['decoder']['__call__'][part]
    arrays = {'refpoint_in': sets.boxes[0]}
    for i, name in enumerate(SETS):
        arrays[f'{name}/logits'] = sets.class_logits[i]
        arrays[f'{name}/masks'] = np.einsum(
            'bqd,bhwd->bqhw', sets.mask_embeddings[i], mask_features, optimize=True
        )
        arrays[f'{name}/boxes'] = sets.boxes[i]
        arrays[f'{name}/allowed'] = attention_mask(
            sets.mask_embeddings[i], memory.mask_features[i % 3]
        )
    for i in range(NUM_LAYERS):
        layer, call = modules[f'layers_{i}'], part * NUM_LAYERS + i
        position, scale = (modules[f'position_{x}']['__call__'][call] for x in ('head', 'scale'))
        arrays[f'layer{i}/query_pos'] = position * scale
        arrays[f'layer{i}/after_self'] = layer['self_attention']['__call__'][part]
        arrays[f'layer{i}/after_cross'] = layer['cross_attention']['__call__'][part]
        arrays[f'layer{i}/query'] = np.concatenate(layer['__call__'][part], axis=1)
    return arrays


def forward(model, params, image, size, virtual_queries=None, replay_positions=None):
    """Predictions, and the arrays of a pass under their published names."""
    ran = run(model, params, image, size, virtual_queries, replay_positions)
    outputs, inner, memory = jax.device_get(ran)
    predictions = outputs if replay_positions is None else outputs[0]
    _, mask_features = inner['pixel_decoder']['__call__'][0]
    if virtual_queries is None:
        virtual_queries = np.zeros((len(image), 0, mask_features.shape[-1]), np.float32)
    arrays = backbone_and_pixel_decoder(params, image, size, inner)
    arrays |= selection(predictions, virtual_queries, inner, memory)
    for i, x in enumerate(memory.positions):
        arrays[f'dec/pos{i}'] = np.broadcast_to(x, (len(image), *x.shape))
    for part, name in enumerate(['dec', 'dec/distill'][: 1 + (replay_positions is not None)]):
        of_pass = decoder(part, inner, memory, mask_features)
        of_pass['interm/query'] = arrays['sel/query']
        if part:
            positions = np.asarray(replay_positions)[..., None]
            of_pass['interm/query'] = np.take_along_axis(
                arrays['sel/output_memory'], positions, axis=1
            )
        arrays |= {f'{name}/{key}': value for key, value in of_pass.items()}
    for name in SETS:
        arrays[f'vqrows/{name}/logits'] = arrays[f'dec/{name}/logits'][:, NUM_QUERIES:]
        arrays[f'vqrows/{name}/query'] = arrays[f'dec/{name}/query'][:, NUM_QUERIES:]
    return predictions, arrays


def without_useless_rows(golden):
    """A file without the rows that need masks or boxes of virtual queries.

    They serve nothing but a second matching for the query bank, so this network makes none.
    """
    golden = dict(golden)
    for name, array in golden.items():
        stride = golden.get(f'{name}.stride', [1, 1])
        if name.startswith('cost/'):
            golden[name] = array[: -(-NUM_QUERIES // stride[0])]
        elif name.startswith(('dec/', 'interm/')) and name.endswith(
            ('/masks', 'boxes', 'refpoint_in')
        ):
            golden[name] = array[:, : -(-NUM_QUERIES // stride[1])]
    return golden


def compare_attention(file, golden, arrays):
    """Asserts that the queries of every decoder output may attend to the published keys.

    Recorded are the bits of blocked keys before rows without any open key are opened.
    """
    compared = [x.removesuffix('/attn_blocked_packed') for x in golden if x.endswith('_packed')]
    compared = [x for x in compared if x.startswith('dec/')]
    assert len(compared) in (10, 20)
    for name in compared:
        allowed = arrays[f'{name}/allowed']  # [B, Q, h * w]
        bits = np.unpackbits(golden[f'{name}/attn_blocked_packed'], axis=-1)
        expected = (bits == 0) | golden[f'{name}/attn_row_all_blocked'][..., None]
        expected = expected[:, : allowed.shape[1], : allowed.shape[2]]
        np.testing.assert_array_equal(allowed, expected, err_msg=name)
        for bits in ('attn_blocked_packed', 'attn_row_all_blocked'):
            parity.ERRORS[file, parity.IDENTICAL][f'{name}/{bits}'] = 0.0
