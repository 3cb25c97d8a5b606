"""The masked-attention decoder: queries attend inside their last mask and may refine boxes."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import flax.linen as nn
import flax.struct
import jax
import jax.numpy as jnp
from einops import rearrange
from jax import Array

from simcis_jax.model.attention import Attention
from simcis_jax.model.layers import MLP, FeedForward
from simcis_jax.model.mask_logits import sigmoid_logits
from simcis_jax.model.position_encoding import encode_boxes, encode_grid, inverse_sigmoid
from simcis_jax.model.prediction_heads import PredictionHeads
from simcis_jax.model.resize import resize_features
from simcis_jax.precision import einsum

ATTENTION_ORDERS = ('self_first', 'cross_first')


@flax.struct.dataclass
class DecoderMemory:
    """The three maps that queries attend to, and the mask features at the size of each."""

    tokens: tuple[Array, ...]  # 3 x [B, h_i * w_i, D], the values.
    positions: tuple[Array, ...]  # 3 x [h_i * w_i, D], added to make keys.
    # Resizing is linear: mask logits at the size of a map are embeddings times resized features.
    mask_features: tuple[Array, ...]  # 3 x [B, h_i * w_i, D].


@flax.struct.dataclass
class DecoderOutputs:
    """Outputs of the heads: for the initial queries, then after each layer."""

    class_logits: Array  # [L, B, Q + V, C]
    mask_embeddings: Array  # [L, B, Q, D]
    boxes: Array | None  # [L, B, Q, 4]; None = the queries have none.
    queries: Array | None = None  # [L, B, Q, D] before the norm of the heads.


def decoder_memory(
    maps: Sequence[Array], level_embedding: Array, mask_features: Array
) -> DecoderMemory:
    """Flattens the maps [B, h_i, w_i, D] and adds level embeddings [3, D].

    Also resizes the mask features [B, h, w, D] to each map.
    """
    hidden_dim = mask_features.shape[-1]
    flat = [rearrange(x, 'b h w d -> b (h w) d') for x in maps]
    return DecoderMemory(
        tokens=tuple(x + level_embedding[i] for i, x in enumerate(flat)),
        positions=tuple(
            rearrange(encode_grid(x.shape[1:3], hidden_dim), 'h w d -> (h w) d') for x in maps
        ),
        mask_features=tuple(
            rearrange(resize_features(mask_features, x.shape[1:3]), 'b h w d -> b (h w) d')
            for x in maps
        ),
    )


def attention_mask(mask_embeddings: Array, mask_features: Array, masks: str = 'sigmoid') -> Array:
    """Keys [B, Q, h * w] bool each query may attend to: its last mask, or all if that is empty.

    Args:
        mask_embeddings: [B, Q, D] of the previous decoder output.
        mask_features: [B, h * w, D] at the size of the map that is attended to.
        masks: the kind of masks, see `model.mask_logits`.
    """
    logits = einsum('bqd,bsd->bqs', mask_embeddings, mask_features)
    on = sigmoid_logits(jax.lax.stop_gradient(logits), masks, axis=1) >= 0
    return on | ~on.any(axis=-1, keepdims=True)


class DecoderLayer(nn.Module):
    """Self-attention, masked cross-attention and FFN; virtual queries pass through the FFN only.

    SimCIS attends to the other queries first, the original Mask2Former to the image first.
    """

    num_heads: int
    feedforward_dim: int
    dtype: jnp.dtype | None = None
    attention_order: str = 'self_first'  # One of `ATTENTION_ORDERS`.

    @nn.compact
    def __call__(
        self,
        queries: Array,
        virtual_queries: Array,
        query_positions: Array,
        tokens: Array,
        token_positions: Array,
        allowed: Array,
        companions: Array | None = None,
    ) -> tuple[Array, Array]:
        """Returns queries [B, Q, D] and virtual queries [B, V, D].

        Args:
            queries: [B, Q, D], virtual_queries: [B, V, D].
            query_positions: [B, Q, D] position encodings of the queries.
            tokens: [B, s, D] of one map, token_positions: [s, D] their position encodings.
            allowed: [B, Q, s] bool, tokens each query may attend to.
            companions: [B, Q, Q] bool, queries each query may attend to; None = all.
        """

        def attend_to_queries(queries: Array) -> Array:
            placed = queries + query_positions
            attention = Attention(self.num_heads, self.dtype, name='self_attention')
            return attention(queries, placed, placed, queries, companions)

        def attend_to_image(queries: Array) -> Array:
            attention = Attention(self.num_heads, self.dtype, name='cross_attention')
            return attention(
                queries, queries + query_positions, tokens + token_positions, tokens, allowed
            )

        if self.attention_order == 'self_first':
            queries = attend_to_image(attend_to_queries(queries))
        else:
            queries = attend_to_queries(attend_to_image(queries))
        # Virtual queries belong to no image, so there is nothing for them to attend to.
        num_queries = queries.shape[1]
        both = jnp.concatenate([queries, virtual_queries], axis=1)
        both = FeedForward(self.feedforward_dim, self.dtype, name='feedforward')(both)
        return both[:, :num_queries], both[:, num_queries:]


class MaskedDecoder(nn.Module):
    """Decoder layers that attend to the maps in turn, coarsest first.

    With `boxes`, the position encodings of the queries are those of their boxes, which every layer
    refines; without, they are given and stay the same in all layers.
    """

    heads: PredictionHeads
    hidden_dim: int = 256
    num_layers: int = 9
    num_heads: int = 8
    feedforward_dim: int = 2048
    dtype: jnp.dtype | None = None
    rematerialize: bool = False
    boxes: bool = True
    attention_order: str = 'self_first'
    masks: str = 'sigmoid'

    def setup(self):
        """Creates the layers and the MLPs of the query positions."""
        make_layer = nn.remat(DecoderLayer) if self.rematerialize else DecoderLayer
        self.layers = [
            make_layer(self.num_heads, self.feedforward_dim, self.dtype, self.attention_order)
            for _ in range(self.num_layers)
        ]
        if self.boxes:
            self.position_head = MLP((self.hidden_dim, self.hidden_dim))
            self.position_scale = MLP((self.hidden_dim, self.hidden_dim))

    def __call__(
        self,
        queries: Array,
        places: Array,
        virtual_queries: Array,
        memory: DecoderMemory,
        stop_gradient: bool = True,
        *,
        heads: Callable[[Array], tuple[Array, Array]] | None = None,
        companions: Array | None = None,
    ) -> DecoderOutputs:
        """Decodes queries.

        Args:
            queries: [B, Q, D]; the initial predictions pass gradients to them.
            places: the initial boxes [B, Q, 4] cx, cy, w, h; without `boxes`, the position
                encodings [B, Q, D], or those of every layer [layers, B, Q, D].
            virtual_queries: [B, V, D].
            memory: the maps to attend to.
            stop_gradient: stop gradients from the layers to the initial queries.
            heads: maps queries to class logits and mask embeddings; None = those of the decoder.
            companions: [B, Q, Q] bool, queries each query may attend to; None = all.
        """
        heads = heads or self.heads
        num_queries = queries.shape[1]
        both = jnp.concatenate([queries, virtual_queries], axis=1)
        class_logits, mask_embeddings = heads(both)
        mask_embeddings = mask_embeddings[:, :num_queries]
        predictions = [(class_logits, mask_embeddings, places, queries)]
        if stop_gradient:
            queries = jax.lax.stop_gradient(queries)
        for i, layer in enumerate(self.layers):
            level = i % len(memory.tokens)
            if self.boxes:
                places = jax.lax.stop_gradient(places)
            queries, virtual_queries = layer(
                queries,
                virtual_queries,
                self._positions(queries, places, i),
                memory.tokens[level],
                memory.positions[level],
                attention_mask(mask_embeddings, memory.mask_features[level], self.masks),
                companions,
            )
            class_logits, mask_embeddings = heads(
                jnp.concatenate([queries, virtual_queries], axis=1)
            )
            mask_embeddings = mask_embeddings[:, :num_queries]
            if self.boxes:
                places = jax.nn.sigmoid(self.heads.box_head(queries) + inverse_sigmoid(places))
            predictions.append((class_logits, mask_embeddings, places, queries))
        class_logits, mask_embeddings, places, queries = zip(*predictions, strict=True)
        return DecoderOutputs(
            jnp.stack(class_logits),
            jnp.stack(mask_embeddings),
            jnp.stack(places) if self.boxes else None,
            jnp.stack(queries),
        )

    def _positions(self, queries: Array, places: Array, layer: int) -> Array:
        """The position encodings [B, Q, D] in a layer; those of boxes, scaled for each query."""
        if not self.boxes:
            return places if places.ndim == 3 else places[layer]
        encoded = self.position_head(encode_boxes(places, self.hidden_dim // 2))
        return self.position_scale(queries) * encoded
