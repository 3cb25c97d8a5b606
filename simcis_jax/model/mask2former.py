"""The network: backbone, pixel decoder, query selection, masked decoder.

Four fields tell SimCIS's network from the original Mask2Former:

                      SimCIS        Mask2Former
    head              sigmoid       softmax with "no object"
    boxes             True          False
    queries           selected      learned
    attention_order   self_first    cross_first
"""

from __future__ import annotations

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from simcis_jax.errors import InputError
from simcis_jax.model.backbones import BACKBONES, coarsest_stride, find_backbone, make_backbone
from simcis_jax.model.class_logits import HEADS, has_no_object, num_columns, without_unseen
from simcis_jax.model.learned_queries import LearnedQueries
from simcis_jax.model.masked_decoder import (
    ATTENTION_ORDERS,
    DecoderOutputs,
    MaskedDecoder,
    decoder_memory,
)
from simcis_jax.model.pixel_decoder import PixelDecoder
from simcis_jax.model.prediction_heads import PredictionHeads
from simcis_jax.model.query_prealignment import QueryPrealignment, select_queries
from simcis_jax.precision import PRECISIONS
from simcis_jax.settings.declare import declare
from simcis_jax.types import Predictions, Selection

PIXEL_MEAN = np.array([123.675, 116.28, 103.53], np.float32)
PIXEL_STD = np.array([58.395, 57.12, 57.375], np.float32)
QUERY_SOURCES = ('selected', 'learned')
REPLAY_BOXES = ('selection', 'tokens')
DTYPES = ('float32', 'bfloat16')


def normalize(image: Array, size: Array | None = None) -> Array:
    """Standardises images by the ImageNet mean and deviation; padding becomes zero.

    Args:
        image: [B, H, W, 3] in 0..255, RGB.
        size: [B, 2] height and width of each image without its padding; None = no padding.
    """
    image = (image.astype(jnp.float32) - PIXEL_MEAN) / PIXEL_STD
    if size is None:
        return image
    rows = jnp.arange(image.shape[1]) < size[:, :1]
    columns = jnp.arange(image.shape[2]) < size[:, 1:]
    return jnp.where((rows[:, :, None] & columns[:, None, :])[..., None], image, 0.0)


class Mask2Former(nn.Module):
    """SimCIS's variant of Mask2Former or, by its settings, the original."""

    num_classes: int
    backbone: str = declare(
        'resnet50',
        'ResNet or Swin transformer; the small ones learn from scratch.',
        choices=tuple(BACKBONES),
    )
    num_queries: int = declare(100, 'Object queries per image.', at_least=1)
    queries: str = declare(
        'selected',
        "Object queries: pixel features 'selected' by QPA, or 'learned' parameters.",
        choices=QUERY_SOURCES,
    )
    boxes: bool = declare(True, 'Queries have boxes, which every layer refines.')
    head: str = declare(
        'sigmoid',
        "Class head: 'sigmoid', or 'softmax' with a further row for \"no object\".",
        choices=HEADS,
    )
    attention_order: str = declare(
        'self_first',
        'Whether a decoder layer begins with self- or cross-attention.',
        choices=ATTENTION_ORDERS,
    )
    stop_gradient: bool = declare(True, 'No gradient from the decoder to the selected queries.')
    replay_boxes: str = declare(
        'selection',
        'Initial boxes where the student also decodes the positions that the teacher selected, to '
        "compare both: those of the student's own 'selection', as published, or those predicted at "
        "the decoded 'tokens'.",
        choices=REPLAY_BOXES,
    )
    hidden_dim: int = declare(
        256, 'Channels of queries and feature maps.', at_least=4, multiple_of=4
    )
    num_heads: int = declare(8, 'Heads of every attention.', at_least=1)
    encoder_layers: int = declare(6, 'Layers of the pixel decoder (encoder).', at_least=0)
    encoder_feedforward: int = declare(1024, 'Hidden units of the encoder FFNs.', at_least=1)
    decoder_layers: int = declare(9, 'Layers of the masked decoder.', at_least=0)
    decoder_feedforward: int = declare(2048, 'Hidden units of the decoder FFNs.', at_least=1)
    class_prior: float | None = declare(
        None,
        'Initial probability of every class; None = default bias, as published.',
        above=0,
        below=1,
    )
    stochastic_depth: float = declare(
        0.0,
        'Rate at which training drops the last block of a Swin transformer; the rate of its other '
        'blocks rises to it from 0.',
        at_least=0,
        below=1,
    )
    masks: str = 'sigmoid'  # One of `mask_logits.MASKS`; chosen by the method.
    dtype: str = declare(
        'float32', 'Precision of products in backbone and masked decoder.', choices=DTYPES
    )
    pixel_decoder_precision: str = declare(
        'highest',
        "Precision of products in the pixel decoder: 'highest' (full float32) or 'high', which is "
        'faster on accelerators.',
        choices=tuple(PRECISIONS),
    )
    rematerialize: bool = declare(
        False, 'Recompute each layer for its gradient: less memory, more time.'
    )

    def setup(self):
        """Creates the submodules."""
        if self.queries not in QUERY_SOURCES:
            raise InputError(f'model.queries={self.queries!r} is unknown; one of {QUERY_SOURCES}.')
        dtype = jnp.dtype(self.dtype)
        self.heads = self.make_heads()
        settings = dict(dtype=dtype, rematerialize=self.rematerialize)
        if self.stochastic_depth:
            settings['stochastic_depth'] = self.stochastic_depth
        family = find_backbone(self.backbone).family  # Names the parameters of the backbone.
        setattr(self, family, make_backbone(self.backbone, **settings))
        self.pixel_decoder = PixelDecoder(
            self.hidden_dim,
            self.encoder_layers,
            self.num_heads,
            feedforward_dim=self.encoder_feedforward,
            rematerialize=self.rematerialize,
            precision=PRECISIONS[self.pixel_decoder_precision],
        )
        self.level_embedding = self.param(
            'level_embedding', nn.initializers.normal(1.0), (3, self.hidden_dim)
        )
        if self.queries == 'selected':
            self.query_prealignment = QueryPrealignment(self.heads)
        else:
            self.learned_queries = LearnedQueries(self.num_queries, self.hidden_dim, self.boxes)
        self.decoder = MaskedDecoder(
            self.heads,
            self.hidden_dim,
            self.decoder_layers,
            self.num_heads,
            self.decoder_feedforward,
            dtype,
            self.rematerialize,
            self.boxes,
            self.attention_order,
            self.masks,
        )

    def make_heads(self) -> nn.Module:
        """The heads of the queries."""
        return PredictionHeads(
            self.num_classes, self.hidden_dim, self.class_prior, self.head, self.boxes
        )

    def backbone_maps(self, image: Array, keys: Array | None = None) -> list[Array]:
        """The four maps of the backbone, finest first, of normalised images [B, H, W, 3]."""
        backbone = getattr(self, find_backbone(self.backbone).family)
        return backbone(image) if keys is None else backbone(image, keys)

    def encode(
        self, image: Array, size: Array | None = None, depth_keys: Array | None = None
    ) -> tuple[dict[str, tuple[Array, ...]], Array]:
        """The maps of backbone and pixel decoder, and the mask features, see `Predictions`.

        Arguments and errors are those of `__call__`.
        """
        height, width = image.shape[1:3]
        stride = coarsest_stride(self.backbone)
        if height % stride or width % stride:
            raise InputError(
                f'The network needs image sides that are multiples of {stride}, got '
                f'{height}x{width}; pad the image or change data.size.'
            )
        backbone_maps = self.backbone_maps(normalize(image, size), depth_keys)
        maps, mask_features = self.pixel_decoder(backbone_maps)
        backbone_maps = tuple(x.astype(jnp.float32) for x in backbone_maps)
        return {'backbone': backbone_maps, 'pixel_decoder': tuple(maps)}, mask_features

    def __call__(
        self,
        image: Array,
        seen: Array | None = None,
        virtual_queries: Array | None = None,
        *,
        size: Array | None = None,
        scored_positions: Array | None = None,
        replay_positions: Array | None = None,
        depth_keys: Array | None = None,
    ) -> Predictions | tuple[Predictions, DecoderOutputs]:
        """Predictions of a batch of images.

        Args:
            image: [B, H, W, 3] in 0..255, RGB; H and W are multiples of the coarsest stride.
            seen: [C] bool, classes whose prototypes may select queries and which the softmax head
                tells apart; None = all.
            virtual_queries: [B, V, D] stored queries that pass through FFNs and heads; None = none.
            size: [B, 2] height and width of each image without its padding; None = no padding.
            scored_positions: [B, N] tokens whose class logits the selection holds; None = none.
            replay_positions: [B, Q] tokens that the teacher selected. If given, they are decoded
                as well, detached and without virtual queries, and their outputs are returned
                second. `replay_boxes` says which initial boxes they have.
            depth_keys: [B] random keys of stochastic depth, in training; None = no drop.

        Raises:
            InputError: H or W is no multiple of the stride, or there are fewer tokens than queries.
        """
        batch_size = len(image)
        features, mask_features = self.encode(image, size, depth_keys)
        maps = features['pixel_decoder']
        memory = decoder_memory(maps, self.level_embedding, mask_features)
        if virtual_queries is None:
            virtual_queries = jnp.zeros((batch_size, 0, self.hidden_dim))

        if self.queries == 'selected':
            shapes = tuple(x.shape[1:3] for x in maps)
            candidates = self.query_prealignment(jnp.concatenate(memory.tokens, axis=1), shapes)
            positions = select_queries(candidates.class_logits, self.num_queries, seen)
            queries, places = self.query_prealignment.queries_at(candidates, positions)
        else:
            queries, places = self.learned_queries(batch_size)
            positions = jnp.broadcast_to(jnp.arange(self.num_queries), queries.shape[:2])

        if scored_positions is None or self.queries == 'learned':
            token_logits = jnp.zeros((batch_size, 0, num_columns(self.head, self.num_classes)))
        else:
            token_logits = self.query_prealignment.logits_at(candidates, scored_positions)

        stop_gradient = self.stop_gradient and self.queries == 'selected'

        def decode(*arguments):
            outputs = self.decoder(*arguments)
            if seen is None or not has_no_object(self.head):
                return outputs
            return outputs.replace(class_logits=without_unseen(outputs.class_logits, seen))

        outputs = decode(queries, places, virtual_queries, memory, stop_gradient)
        predictions = Predictions(
            class_logits=outputs.class_logits[:, :, : self.num_queries],
            mask_embeddings=outputs.mask_embeddings,
            boxes=outputs.boxes,
            virtual_class_logits=outputs.class_logits[:, :, self.num_queries :],
            mask_features=mask_features,
            selection=Selection(token_logits, positions, queries),
            head=self.head,
            masks=self.masks,
            queries=outputs.queries,
            features=features,
        )
        if replay_positions is None:
            return predictions
        replayed, replayed_boxes = self.query_prealignment.queries_at(candidates, replay_positions)
        if self.replay_boxes == 'tokens':
            places = replayed_boxes
        replayed, places = jax.lax.stop_gradient((replayed, places))
        no_virtual_queries = virtual_queries[:, :0]
        return predictions, decode(replayed, places, no_virtual_queries, memory)
