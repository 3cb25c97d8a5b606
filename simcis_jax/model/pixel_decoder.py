"""The pixel decoder: a deformable-attention encoder over three maps, then one FPN step."""

from __future__ import annotations

import flax.linen as nn
import jax.numpy as jnp
import numpy as np
from einops import rearrange
from jax import Array
from jax.lax import Precision

from simcis_jax.model.convolution import Conv
from simcis_jax.model.deformable_attention import DeformableAttention
from simcis_jax.model.layers import FeedForward, LayerNorm, group_norm, relu, xavier_uniform
from simcis_jax.model.position_encoding import encode_grid
from simcis_jax.model.repeated_layers import in_turn
from simcis_jax.model.resize import resize_features
from simcis_jax.model.saved_for_backward import MARKED_ONLY, backward_at_once, kept
from simcis_jax.precision import HIGHEST

# Kaiming-uniform with gain 1: what Caffe2 calls Xavier.
caffe2_xavier = nn.initializers.variance_scaling(1.0, 'fan_in', 'uniform')


def grid_centres(shapes: tuple[tuple[int, int], ...]) -> np.ndarray:
    """Centres [S, 2] (x, y in [0, 1]) of the positions of all maps, one map after the other."""
    centres = []
    for height, width in shapes:
        y, x = np.meshgrid(
            (np.arange(height) + 0.5) / height, (np.arange(width) + 0.5) / width, indexing='ij'
        )
        centres.append(np.stack([x, y], axis=-1).reshape(-1, 2))
    return np.concatenate(centres).astype(np.float32)


@nn.remat
def in_float32(layer: nn.Module, x: Array) -> Array:
    """A linear layer of x; the backward pass converts x again instead of keeping the result."""
    return layer(x.astype(jnp.float32))


class EncoderLayer(nn.Module):
    """Deformable self-attention and an FFN, each with residual sum and LayerNorm (post-norm)."""

    num_heads: int
    feedforward_dim: int
    num_points: int
    precision: Precision = HIGHEST

    @nn.compact
    def __call__(self, tokens: Array, positions: Array, references: Array, shapes) -> Array:
        """Tokens [B, S, D] -> [B, S, D].

        Args:
            tokens: [B, S, D].
            positions: [S, D] position encodings.
            references: [S, 2] centre of each token, x, y in [0, 1].
            shapes: (h, w) of every map; S = sum of h * w.
        """
        attention = DeformableAttention(
            self.num_heads, self.num_points, precision=self.precision, name='attention'
        )
        attended = attention(tokens, positions, references, shapes)
        tokens = LayerNorm(name='attention_norm')(tokens + attended)
        feedforward = FeedForward(
            self.feedforward_dim, precision=self.precision, name='feedforward'
        )
        return feedforward(tokens)


class PixelDecoder(nn.Module):
    """Turns backbone maps into three maps for the decoder and per-pixel mask features."""

    hidden_dim: int = 256
    num_layers: int = 6
    num_heads: int = 8
    num_points: int = 4
    feedforward_dim: int = 1024
    rematerialize: bool = False
    precision: Precision = HIGHEST

    @nn.compact
    def __call__(self, maps: list[Array]) -> tuple[list[Array], Array]:
        """Encodes the feature maps of the backbone, in float32.

        Args:
            maps: four maps [B, h_i, w_i, I_i], finest first.

        Returns:
            The three coarser maps, encoded, [B, h_i, w_i, D], coarsest first, and mask features
            [B, h, w, D] at the resolution of the finest map.
        """
        finest, *rest = maps
        tokens, positions = [], []
        level_embedding = self.param(
            'level_embed', nn.initializers.normal(1.0), (3, self.hidden_dim)
        )
        shapes = tuple(x.shape[1:3] for x in reversed(rest))
        for i, x in enumerate(reversed(rest)):
            conv = Conv(
                self.hidden_dim,
                (1, 1),
                kernel_init=xavier_uniform,
                precision=self.precision,
                name=f'input{i}',
            )
            x = group_norm(f'input_norm{i}', self.hidden_dim)(in_float32(conv, x))
            tokens.append(rearrange(x, 'b h w d -> b (h w) d'))
            position = encode_grid(shapes[i], self.hidden_dim) + level_embedding[i]
            positions.append(rearrange(position, 'h w d -> (h w) d'))
        tokens = jnp.concatenate(tokens, axis=1)
        positions, references = jnp.concatenate(positions), grid_centres(shapes)
        make_layer = nn.remat(
            EncoderLayer,
            static_argnums=4,  # The shapes.
            prevent_cse=False,  # There is nothing to prevent in a loop.
            policy=None if self.rematerialize else MARKED_ONLY,
        )
        layers = [
            make_layer(
                self.num_heads,
                self.feedforward_dim,
                self.num_points,
                self.precision,
                name=f'layer{i}',
            )
            for i in range(self.num_layers)
        ]
        tokens = in_turn(layers, tokens, positions, references, shapes)
        ends = np.cumsum([h * w for h, w in shapes])[:-1]
        encoded = [
            rearrange(x, 'b (h w) d -> b h w d', h=h)
            for x, (h, _) in zip(jnp.split(tokens, ends, axis=1), shapes, strict=True)
        ]
        mask_features = backward_at_once(PixelDecoder._mask_features)
        return encoded, mask_features(self, finest, encoded[-1])

    def _mask_features(self, finest: Array, encoded: Array) -> Array:
        """One FPN step: adds the upsampled stride-8 map to the finest backbone map."""

        def conv(name, kernel, use_bias=False):
            return Conv(
                self.hidden_dim,
                (kernel, kernel),
                use_bias=use_bias,
                kernel_init=caffe2_xavier,
                precision=self.precision,
                name=name,
            )

        lateral = in_float32(conv('lateral', 1), finest)
        lateral = group_norm('lateral_norm', self.hidden_dim)(lateral)
        enlarged = resize_features(encoded, finest.shape[1:3])
        x = group_norm('output_norm', self.hidden_dim)(conv('output', 3)(lateral + enlarged))
        return kept(conv('mask_features', 1, use_bias=True)(relu(x)))
