"""Runs this network at the published size and names its arrays as the published code does."""

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
BLOCKS = {'resnet50': 6, 'resnet101': 23}  # Number of blocks in res4.
# Prefixes of the activations to compare; vqrows/ are the rows of virtual queries.
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


def network(backbone='resnet50', **settings):
    """The network."""
    return Mask2Former(NUM_CLASSES, backbone=backbone, **settings)


@functools.lru_cache(maxsize=2)
def weights(salt, backbone='resnet50'):
    """The parameters that the golden files were computed with."""
    return to_flax(golden_weights.published_state(salt, BLOCKS[backbone]))


def padded(images):
    """Images [B, 3, h, w] padded to multiples of 32 [B, H, W, 3], and their sizes [B, 2]."""
    images = np.moveaxis(images, 1, -1)
    batch, height, width, _ = images.shape
    canvas = np.full((batch, -(-height // 32) * 32, -(-width // 32) * 32, 3), 77, np.uint8)
    canvas[:, :height, :width] = images
    return canvas, np.array([[height, width]] * batch)


@functools.partial(jax.jit, static_argnums=0)
def run(model, params, image, size, virtual_queries, scored_positions, replay_positions):
    """Outputs, the intermediate outputs of all modules, and the memory of the decoder."""
    outputs, state = model.apply(
        {'params': params},
        image,
        None,
        virtual_queries,
        size=size,
        scored_positions=scored_positions,
        replay_positions=replay_positions,
        capture_intermediates=True,
        mutable=['intermediates'],
    )
    inner = state['intermediates']
    maps, mask_features = inner['pixel_decoder']['__call__'][0]
    return outputs, inner, decoder_memory(maps, params['level_embedding'], mask_features)


def tokens_of(maps):
    """Flattens maps [B, h, w, D] and concatenates them to tokens [B, S, D]."""
    return np.concatenate([x.reshape(len(x), -1, x.shape[-1]) for x in maps], axis=1)


def channels_first(x):
    """[B, h, w, D] -> [B, D, h, w]."""
    return np.moveaxis(x, -1, 1)


def backbone_and_pixel_decoder(params, image, size, inner):
    """Arrays of the backbone and the pixel decoder."""
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
        'sel/output_memory': inner['query_prealignment']['norm']['__call__'][0],
        'sel/class_logits': candidates.class_logits,
        'sel/max_logit': scores,
        'sel/topk': predictions.selection.positions,
        'sel/query': np.concatenate([predictions.selection.queries, virtual_queries], axis=1),
        'interm/pred_boxes': predictions.boxes[0],
    }


def decoder(part, inner, memory, mask_features):
    """Arrays of one pass of the decoder, without the prefix of the pass."""
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


def forward(
    model,
    params,
    image,
    size,
    virtual_queries=None,
    *,
    scored_positions=None,
    replay_positions=None,
):
    """Predictions, and the arrays of a forward pass under their published names."""
    ran = run(model, params, image, size, virtual_queries, scored_positions, replay_positions)
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


def without_virtual_query_masks(golden):
    """A golden file without the masks, boxes and costs of virtual queries.

    The published code uses them only in a second matching for the query bank; this network does not
    compute them.
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
    """Asserts that the attention masks of all decoder outputs equal the published ones.

    The golden file stores the mask of blocked keys before fully blocked rows are opened.
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
