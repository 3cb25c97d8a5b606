"""Decodes with the weights, maps and features that were recorded of a published decoder."""

import jax
import jax.numpy as jnp
import numpy as np

from simcis_jax.model.masked_decoder import MaskedDecoder, decoder_memory
from simcis_jax.model.prediction_heads import PredictionHeads
from simcis_jax.port.names import PREDICTOR


def state_of(golden):
    """The recorded weights by their published names."""
    start = 'decoder/params/'
    return {
        f'{PREDICTOR}.{name.removeprefix(start)}': x
        for name, x in golden.items()
        if name.startswith(start)
    }


def decode(golden, params, *, num_classes, layers, masks='sigmoid'):
    """The arrays below 'decoder/' by name, the outputs, and the mask features [B, h, w, D].

    Args:
        golden: all recorded arrays.
        params: the recorded weights as our parameters.
        num_classes: classes of all heads together.
        layers: decoder layers.
        masks: see `model.mask_logits`.
    """
    recorded = {name.removeprefix('decoder/'): x for name, x in golden.items()}
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
