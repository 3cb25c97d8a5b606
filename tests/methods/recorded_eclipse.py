"""The small network of the recorded arrays of ECLIPSE: weights and inputs, drawn by their names.

Every array has a generator of its own, seeded by its name in the published state dict.
"""

import functools
import zlib

import jax
import jax.numpy as jnp
import numpy as np

from simcis_jax.continual.stages import Stage
from simcis_jax.model.prompted_mask2former import PromptedMask2Former
from simcis_jax.port.names import LEARNED_QUERIES, MASKED_DECODER, PREDICTOR, Layout
from simcis_jax.port.torch_weights import to_flax
from simcis_jax.types import StageArrays

SALT, CLASS_BIAS = 'E19:', -3.2
WIDTH, QUERIES, PROMPTS, LAYERS = 64, 20, 5, 9
STAGES = tuple(range(7)), (7, 8, 9), (10, 11, 12)
SIZES, MASK_SIZE, IMAGES = ((4, 5), (8, 10), (16, 20)), (32, 40), 2


def noise(key, shape):
    return np.random.default_rng(zlib.crc32((SALT + key).encode())).standard_normal(shape)


def weight(key, *shape):
    """The float32 array with a name below `sem_seg_head.predictor.`."""
    z = noise(key, shape)
    if key == 'level_embed.weight':
        z = 0.3 * z
    elif key.startswith(('query_', 'prompt_feat', 'prompt_embed')):
        pass
    elif len(shape) == 2:
        last = key.endswith('layers.2.weight')
        factor = 1.0
        if key.endswith(('out_proj.weight', 'linear2.weight')):
            factor = 0.5
        elif last and 'class_embed' in key:
            factor = 3.0
        elif last and 'mask_embed' in key:
            factor = 4.0
        z = factor * (z / np.sqrt(shape[1]))
    elif key.endswith('norm.weight'):
        z = 1.0 + 0.1 * z
    elif key.startswith('class_embed') and key.endswith('layers.2.bias'):
        z = (1.0 if key.startswith('class_embed.cls.0.') else CLASS_BIAS) + 0.5 * z
    else:
        z = 0.1 * z
    return z.astype(np.float32)


def feature(key, height, width):
    """A smooth random map [B, h, w, D]: noise on a 4 x 4 grid, enlarged, plus noise."""
    coarse = noise(key, (IMAGES, WIDTH, 4, 4))
    rows, columns = ((np.arange(n) + 0.5) / n * 3 for n in (height, width))
    r0, c0 = (np.minimum(x.astype(int), 2) for x in (rows, columns))
    fr, fc = (rows - r0)[:, None], columns - c0
    enlarged = (
        coarse[:, :, r0][..., c0] * (1 - fr) * (1 - fc)
        + coarse[:, :, r0][..., c0 + 1] * (1 - fr) * fc
        + coarse[:, :, r0 + 1][..., c0] * fr * (1 - fc)
        + coarse[:, :, r0 + 1][..., c0 + 1] * fr * fc
    )
    fine = 0.2 * noise(f'{key}/fine', (IMAGES, WIDTH, height, width))
    return np.moveaxis((enlarged + fine).astype(np.float32), 1, -1)


def inputs():
    """The maps and mask features that `PromptedMask2Former.decode` takes."""
    maps = tuple(jnp.asarray(feature(f'x{i}', *size)) for i, size in enumerate(SIZES))
    mask_features = feature('mask_features', *MASK_SIZE) / np.float32(np.sqrt(WIDTH))
    return {'pixel_decoder': maps}, jnp.asarray(mask_features)


def network(stages=STAGES, **settings):
    """The network for these stages; its backbone and pixel decoder are not used."""
    return PromptedMask2Former(
        num_classes=sum(map(len, stages)),
        stages=stages,
        num_prompts=PROMPTS,
        num_queries=QUERIES,
        hidden_dim=WIDTH,
        num_heads=8,
        decoder_layers=LAYERS,
        decoder_feedforward=128,
        backbone='small',
        queries='learned',
        boxes=False,
        head='independent',
        attention_order='cross_first',
        **settings,
    )


def linear(key, *shape):
    kernel, bias = weight(f'{key}.weight', *shape), weight(f'{key}.bias', shape[0])
    return {'dense': {'kernel': kernel.T, 'bias': bias}}


def mlp(key, last=WIDTH):
    widths = WIDTH, WIDTH, last
    return {f'layer{k}': linear(f'{key}.layers.{k}', n, WIDTH) for k, n in enumerate(widths)}


def prompts(stage, *, shallow=False):
    """Prompts and heads of stage 2 or 3."""
    i = stage - 2
    names = [f'prompt_embed.{i}.weight'] if shallow else [
        f'prompt_embed.{i}.{layer}.weight' for layer in range(LAYERS)
    ]  # fmt: skip
    return {
        'prompts': {
            'features': weight(f'prompt_feat.{i}.weight', PROMPTS, WIDTH),
            'positions': np.stack([weight(name, PROMPTS, WIDTH) for name in names]),
        },
        'mask_head': mlp(f'prompt_mask_embed.{i}'),
        'class_head': mlp(f'class_embed.cls.{stage}', len(STAGES[stage - 1])),
    }


@functools.cache
def params(number=3, *, shallow=False):
    """The parameters after a stage."""
    attention = 'in_proj_weight', 'in_proj_bias', 'out_proj.weight', 'out_proj.bias'
    norm = 'weight', 'bias'
    shapes = {
        'in_proj_weight': (3 * WIDTH, WIDTH), 'in_proj_bias': (3 * WIDTH,),
        'out_proj.weight': (WIDTH, WIDTH), 'out_proj.bias': (WIDTH,),
        'weight': (WIDTH,), 'bias': (WIDTH,),
        'linear1.weight': (128, WIDTH), 'linear1.bias': (128,),
        'linear2.weight': (WIDTH, 128), 'linear2.bias': (WIDTH,),
    }  # fmt: skip
    state = {
        'level_embed.weight': weight('level_embed.weight', 3, WIDTH),
        'query_feat.weight': weight('query_feat.weight', QUERIES, WIDTH),
        'query_embed.weight': weight('query_embed.weight', QUERIES, WIDTH),
    }
    modules = {'decoder_norm': norm}
    for i in range(LAYERS):
        modules |= {
            f'transformer_self_attention_layers.{i}.self_attn': attention,
            f'transformer_self_attention_layers.{i}.norm': norm,
            f'transformer_cross_attention_layers.{i}.multihead_attn': attention,
            f'transformer_cross_attention_layers.{i}.norm': norm,
            f'transformer_ffn_layers.{i}': [x for x in shapes if x.startswith('linear')],
            f'transformer_ffn_layers.{i}.norm': norm,
        }
    for module, names in modules.items():
        state |= {f'{module}.{x}': weight(f'{module}.{x}', *shapes[x]) for x in names}
    heads = 'heads/class_head', 'heads/mask_head'
    rows = [row for row in MASKED_DECODER if not row[1].startswith(heads)]
    state = {f'{PREDICTOR}.{key}': x for key, x in state.items()}
    tree = to_flax(state, Layout('decoder', (*LEARNED_QUERIES, *rows)))
    tree['heads'] |= {
        'mask_head': mlp('mask_embed'),
        'class_head': mlp('class_embed.cls.1', len(STAGES[0])),
        'no_object': mlp('class_embed.cls.0', 1),
    }
    newest = prompts(max(number, 2), shallow=shallow)
    empty = jax.tree.map(lambda x: np.zeros((2, *x.shape)), newest)
    if number == 3:  # The slot of the newest stage is not read.
        second = prompts(2, shallow=shallow)
        empty = jax.tree.map(lambda x: np.stack([x, np.full_like(x, np.nan)]), second)
    return jax.tree.map(jnp.asarray, tree | {'newest': newest, 'finished': empty})


def stage_of(number):
    """The stage as `Method.trainable` gets it, and as arrays."""
    past = sum(STAGES[: number - 1], ())
    stage = Stage(number - 1, past, STAGES[number - 1])
    masks = map(jnp.asarray, stage.masks(sum(map(len, STAGES))))
    return stage, StageArrays(*masks, jnp.int32(1), jnp.float32(5e-4), jnp.int32(number - 1))


@functools.partial(jax.jit, static_argnames=('network', 'rows'))
def decode(params, inputs, seen, *, network, rows):
    variables = {'params': params}
    return network.apply(variables, *inputs, seen, rows, method=PromptedMask2Former.decode)


@functools.cache
def decoded(rows='all', number=3, *, shallow=False):
    """The predictions after a stage."""
    return decode(
        params(number, shallow=shallow),
        inputs(),
        stage_of(number)[1].seen,
        network=network(layer_positions=not shallow),
        rows=rows,
    )
