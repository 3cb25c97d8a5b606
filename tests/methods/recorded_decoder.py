"""Decodes with the weights, maps and features that were recorded of a published decoder."""

import jax
import jax.numpy as jnp
import numpy as np

from simcis_jax.model.masked_decoder import MaskedDecoder, decoder_memory
from simcis_jax.model.prediction_heads import PredictionHeads
from simcis_jax.port.names import LEARNED_QUERIES, MASKED_DECODER, PREDICTOR, Layout
from simcis_jax.port.torch_weights import to_flax


def decode(golden, heads_of_classes, join, *, num_classes, layers, masks='sigmoid'):
    """The arrays below 'decoder/' by name, the outputs, and the mask features [B, h, w, D].

    Args:
        golden: all recorded arrays.
        heads_of_classes: name of the three published class heads, one per stage.
        join: maps the rows of these heads to parts in our order, with "no object" last.
        num_classes: classes of all heads together.
        layers: decoder layers.
        masks: see `model.mask_logits`.
    """
    recorded = {name.removeprefix('decoder/'): x for name, x in golden.items()}
    state = {
        f'{PREDICTOR}.{name.removeprefix("params/")}': x
        for name, x in recorded.items()
        if name.startswith('params/') and f'{heads_of_classes}.' not in name
    }
    for kind in ('weight', 'bias'):
        parts = [recorded[f'params/{heads_of_classes}.{i}.{kind}'] for i in range(3)]
        state[f'{PREDICTOR}.class_embed.{kind}'] = np.concatenate(join(*parts))
    params = to_flax(state, Layout('decoder', LEARNED_QUERIES + MASKED_DECODER))
    maps = [jnp.asarray(np.moveaxis(recorded[f'map{i}'], 1, -1)) for i in range(3)]
    features = jnp.asarray(np.moveaxis(recorded['mask_features'], 1, -1))
    width, images = features.shape[-1], len(features)
    heads = PredictionHeads(num_classes, width, head='softmax', boxes=False)
    options = dict(boxes=False, attention_order='cross_first', masks=masks)
    decoder = MaskedDecoder(heads, width, layers, 2, 24, **options)
    queries, places = (
        jnp.broadcast_to(x, (images, *x.shape))
        for x in (params['learned_queries'][name] for name in ('features', 'positions'))
    )
    outputs = jax.jit(decoder.apply)(
        {'params': params['decoder'] | {'heads': params['heads']}},
        queries,
        places,
        jnp.zeros((images, 0, width)),
        decoder_memory(maps, params['level_embedding'], features),
    )
    return recorded, outputs, features
