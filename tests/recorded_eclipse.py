"""The small network of the recorded arrays of ECLIPSE: weights and inputs, drawn by their names.

Every array has a generator of its own, seeded by its name in the published state dict.
"""

import functools
import zlib

import jax
import jax.numpy as jnp
import numpy as np
from shrunken_params import encoder

from simcis_jax.continual.stages import Stage
from simcis_jax.model.prompted_mask2former import PromptedMask2Former
from simcis_jax.port import growing_models
from simcis_jax.port.names import PREDICTOR
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


def shapes_of(number, *, shallow=False):
    """The shapes of the published arrays after a stage, by names below the predictor."""
    attention = {
        'in_proj_weight': (3 * WIDTH, WIDTH), 'in_proj_bias': (3 * WIDTH,),
        'out_proj.weight': (WIDTH, WIDTH), 'out_proj.bias': (WIDTH,),
    }  # fmt: skip
    feedforward = {
        'linear1.weight': (128, WIDTH), 'linear1.bias': (128,),
        'linear2.weight': (WIDTH, 128), 'linear2.bias': (WIDTH,),
    }  # fmt: skip
    norm = {'weight': (WIDTH,), 'bias': (WIDTH,)}

    def mlp(last):
        for layer, rows in enumerate((WIDTH, WIDTH, last)):
            yield f'layers.{layer}.weight', (rows, WIDTH)
            yield f'layers.{layer}.bias', (rows,)

    queries, prompts = {'weight': (QUERIES, WIDTH)}, {'weight': (PROMPTS, WIDTH)}
    modules = {
        'level_embed': {'weight': (3, WIDTH)},
        'query_feat': queries,
        'query_embed': queries,
        'decoder_norm': norm,
        'mask_embed': mlp(WIDTH),
        'class_embed.cls.0': mlp(1),
    }
    for i in range(LAYERS):
        modules |= {
            f'transformer_self_attention_layers.{i}.self_attn': attention,
            f'transformer_self_attention_layers.{i}.norm': norm,
            f'transformer_cross_attention_layers.{i}.multihead_attn': attention,
            f'transformer_cross_attention_layers.{i}.norm': norm,
            f'transformer_ffn_layers.{i}': feedforward,
            f'transformer_ffn_layers.{i}.norm': norm,
        }
    for i, classes in enumerate(STAGES[:number], 1):
        modules[f'class_embed.cls.{i}'] = mlp(len(classes))
    for i in range(number - 1):
        layers = [f'{i}'] if shallow else [f'{i}.{layer}' for layer in range(LAYERS)]
        modules |= {f'prompt_embed.{name}': prompts for name in layers}
        modules |= {f'prompt_feat.{i}': prompts, f'prompt_mask_embed.{i}': mlp(WIDTH)}
    return {
        f'{module}.{name}': shape
        for module, arrays in modules.items()
        for name, shape in dict(arrays).items()
    }


def state_of(number=3, *, shallow=False):
    """The published state dict after a stage; backbone and pixel decoder are tiny."""
    shapes = shapes_of(number, shallow=shallow)
    return encoder()[1] | {
        f'{PREDICTOR}.{name}': weight(name, *shape) for name, shape in shapes.items()
    }


@functools.cache
def params(number=3, *, shallow=False):
    """The parameters after a stage, without backbone and pixel decoder."""
    tree, _ = growing_models.read('drawn', state_of(max(number, 2), shallow=shallow))
    tree = {key: x for key, x in tree.items() if key not in encoder()[0]}
    finished = tree['finished']
    if number == 3:  # The slot of the newest stage is not read.
        finished = jax.tree.map(lambda x: np.stack([x[0], np.full_like(x[1], np.nan)]), finished)
    else:
        finished = jax.tree.map(lambda x: np.concatenate([x, x]), finished)
    return jax.tree.map(jnp.asarray, tree | {'finished': finished})


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
