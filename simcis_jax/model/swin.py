"""Swin transformers: self-attention in windows, which are shifted in every second block."""

from __future__ import annotations

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from einops import rearrange
from jax import Array

from simcis_jax.model.attention import attend
from simcis_jax.model.convolution import Conv
from simcis_jax.model.layers import Dense, LayerNorm

truncated_normal = nn.initializers.truncated_normal(0.02)
SwinDense = functools.partial(Dense, kernel_init=truncated_normal)

NO_SHIFT = 0


def relative_positions(window: int) -> np.ndarray:
    """The row [w * w, w * w] of the bias table that each pair of window positions uses."""
    y, x = (axis.ravel() for axis in np.indices((window, window)))
    rows, columns = (axis[:, None] - axis + window - 1 for axis in (y, x))
    return rows * (2 * window - 1) + columns


def neighbours(shape: tuple[int, int], window: int, shift: int) -> np.ndarray:
    """Which positions of a window were neighbours before the shift [n, w * w, w * w] bool.

    Shifting moves the first rows and columns of a map [*shape] to its end, into windows together
    with positions from the other side.
    """
    regions = np.zeros(shape, int)
    for axis, size in enumerate(shape):
        side = np.searchsorted([size - window, size - shift], np.arange(size), side='right')
        regions = 3 * regions + (side[:, None] if axis == 0 else side)
    regions = rearrange(regions, '(y p) (x q) -> (y x) (p q)', p=window, q=window)
    return regions[:, :, None] == regions[:, None, :]


def stochastic_depth(keys: Array, num_blocks: int, rate: float) -> Array:
    """Factors [num_blocks, 2, B] on the two branches of every block, of mean 1.

    Args:
        keys: [B] one random key per image.
        num_blocks: blocks of the network; the rate at which they are dropped rises from 0.
        rate: at which the last block is dropped.
    """
    kept = 1 - np.linspace(0, rate, num_blocks, dtype=np.float32)[:, None]

    def draw(key):
        return jax.random.bernoulli(key, kept, (num_blocks, 2)) / kept

    return jax.vmap(draw, out_axes=-1)(keys)


class WindowAttention(nn.Module):
    """Multi-head attention inside windows, with a learned bias for every relative position."""

    num_heads: int
    window: int
    shift: int = NO_SHIFT
    dtype: jnp.dtype | None = None

    @nn.compact
    def __call__(self, x: Array) -> Array:
        """[B, h, w, D] -> [B, h, w, D]; maps are padded by zeros to whole windows."""
        (batch, height, width, dim), size = x.shape, self.window
        padding = (-height % size, -width % size)
        x = jnp.pad(x, ((0, 0), (0, padding[0]), (0, padding[1]), (0, 0)))
        x = jnp.roll(x, (-self.shift, -self.shift), axis=(1, 2))
        padded = x.shape[1:3]
        windows = rearrange(x, 'b (y p) (x q) d -> (b y x) (p q) d', p=size, q=size)

        def heads(name):
            y = SwinDense(dim, dtype=self.dtype, name=name)(windows)
            return rearrange(y, 'n s (m d) -> n m s d', m=self.num_heads)

        query, key, value = heads('query'), heads('key'), heads('value')
        table = self.param(
            'relative_position_bias', truncated_normal, ((2 * size - 1) ** 2, self.num_heads)
        )
        bias = rearrange(table[relative_positions(size)], 'n s m -> m n s')
        allowed = None
        if self.shift:
            allowed = jnp.tile(neighbours(padded, size, self.shift), (batch, 1, 1))
        y = attend(query * query.shape[-1] ** -0.5, key, value, allowed, bias)
        y = SwinDense(dim, dtype=self.dtype, name='output')(rearrange(y, 'n m s d -> n s (m d)'))
        y = rearrange(
            y,
            '(b y x) (p q) d -> b (y p) (x q) d',
            y=padded[0] // size,
            p=size,
            x=padded[1] // size,
        )
        y = jnp.roll(y, (self.shift, self.shift), axis=(1, 2))
        return y[:, :height, :width]


class SwinBlock(nn.Module):
    """Window attention and an MLP, each a residual branch that begins with a LayerNorm."""

    num_heads: int
    window: int
    shift: int
    mlp_ratio: int = 4
    dtype: jnp.dtype | None = None

    @nn.compact
    def __call__(self, x: Array, depth: Array | None = None) -> Array:
        """[B, h, w, D] -> [B, h, w, D]; `depth` [2, B] are the factors of stochastic depth."""

        def added(x: Array, branch: Array, number: int) -> Array:
            return x + (branch if depth is None else branch * depth[number][:, None, None, None])

        dim = x.shape[-1]
        attention = WindowAttention(
            self.num_heads, self.window, self.shift, self.dtype, name='attention'
        )
        x = added(x, attention(LayerNorm(name='norm1')(x)), 0)
        y = SwinDense(self.mlp_ratio * dim, dtype=self.dtype, name='linear1')(
            LayerNorm(name='norm2')(x)
        )
        y = SwinDense(dim, dtype=self.dtype, name='linear2')(nn.gelu(y, approximate=False))
        return added(x, y, 1)


class PatchMerging(nn.Module):
    """Halves a map: the channels of 2 x 2 positions become one position of twice the channels."""

    dtype: jnp.dtype | None = None

    @nn.compact
    def __call__(self, x: Array) -> Array:
        """[B, h, w, D] -> [B, ceil(h / 2), ceil(w / 2), 2 D]."""
        dim = x.shape[-1]
        x = jnp.pad(x, ((0, 0), (0, x.shape[1] % 2), (0, x.shape[2] % 2), (0, 0)))
        x = rearrange(x, 'b (y p) (x q) d -> b y x (q p d)', p=2, q=2)
        x = LayerNorm(name='norm')(x)
        return SwinDense(2 * dim, use_bias=False, dtype=self.dtype, name='reduction')(x)


class Swin(nn.Module):
    """Swin transformer that returns the normalised maps of its four stages, at strides 4 to 32."""

    width: int = 96
    depths: tuple[int, int, int, int] = (2, 2, 6, 2)
    num_heads: tuple[int, int, int, int] = (3, 6, 12, 24)
    window: int = 7
    stochastic_depth: float = 0.0
    dtype: jnp.dtype | None = None
    rematerialize: bool = False

    @nn.compact
    def __call__(self, image: Array, keys: Array | None = None) -> list[Array]:
        """[B, H, W, 3] normalised -> maps [B, H / s, W / s, width * s / 4], finest first.

        Args:
            image: its sides are multiples of 32.
            keys: [B] random keys of stochastic depth, for training; None = all blocks are used.
        """
        num_blocks = sum(self.depths)
        depth = [None] * num_blocks
        if keys is not None and self.stochastic_depth:
            depth = stochastic_depth(keys, num_blocks, self.stochastic_depth)
        x = Conv(
            self.width,
            (4, 4),
            strides=4,
            padding='VALID',
            dtype=self.dtype,
            kernel_init=truncated_normal,
            name='patch_embedding',
        )(image)
        x = LayerNorm(name='patch_norm')(x)
        make_block = nn.remat(SwinBlock) if self.rematerialize else SwinBlock
        maps, block = [], 0
        for stage, (count, heads) in enumerate(zip(self.depths, self.num_heads, strict=True)):
            if stage > 0:
                x = PatchMerging(self.dtype, name=f'merging{stage}')(x)
            for i in range(count):
                shift = self.window // 2 if i % 2 else NO_SHIFT
                name = f'stage{stage + 1}_{i}'
                x = make_block(heads, self.window, shift, dtype=self.dtype, name=name)(
                    x, depth[block]
                )
                block += 1
            maps.append(LayerNorm(name=f'output_norm{stage + 1}')(x))
        return maps


SWINS = {
    'swin_t': dict(),
    'swin_s': dict(depths=(2, 2, 18, 2)),
    'swin_b': dict(width=128, depths=(2, 2, 18, 2), num_heads=(4, 8, 16, 32), window=12),
    'swin_l': dict(width=192, depths=(2, 2, 18, 2), num_heads=(6, 12, 24, 48), window=12),
    'swin_small': dict(width=32, depths=(1, 2, 2, 1), num_heads=(1, 2, 4, 8), window=4),
}
