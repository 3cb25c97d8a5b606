"""ResNet backbones: 50 and 101 with frozen batch norm, and small ones to train from scratch."""

from __future__ import annotations

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import Array

from simcis_jax.model.convolution import Conv
from simcis_jax.model.layers import NORM_EPSILON, group_norm, relu

he_normal_fan_out = nn.initializers.variance_scaling(2.0, 'fan_out', 'normal')


class FrozenBatchNorm(nn.Module):
    """Batch norm with constant statistics and affine parameters, from pretrained weights.

    The optimizer leaves parameters alone whose names begin with `frozen_`.
    """

    @nn.compact
    def __call__(self, x: Array) -> Array:
        """[B, h, w, I] -> [B, h, w, I]."""
        ones, zeros = nn.initializers.ones, nn.initializers.zeros
        shape = (x.shape[-1],)
        scale = self.param('frozen_scale', ones, shape)
        bias = self.param('frozen_bias', zeros, shape)
        mean = self.param('frozen_mean', zeros, shape)
        variance = self.param('frozen_variance', ones, shape)
        scale = jax.lax.stop_gradient(scale * jax.lax.rsqrt(variance + NORM_EPSILON))
        bias = jax.lax.stop_gradient(bias - mean * scale)
        return x * scale.astype(x.dtype) + bias.astype(x.dtype)


class _ConvNorm(nn.Module):
    """A convolution without bias, with PyTorch's padding, and its norm."""

    features: int
    kernel: int
    stride: int = 1
    norm: str = 'frozen'
    dtype: jnp.dtype | None = None

    @nn.compact
    def __call__(self, x: Array) -> Array:
        pad = self.kernel // 2
        x = Conv(
            self.features,
            (self.kernel, self.kernel),
            strides=self.stride,
            padding=((pad, pad), (pad, pad)),
            use_bias=False,
            dtype=self.dtype,
            kernel_init=he_normal_fan_out,
            name='conv',
        )(x)
        if self.norm == 'group':
            return group_norm('norm', self.features)(x).astype(x.dtype)
        return FrozenBatchNorm(name='norm')(x)


class _Block(nn.Module):
    """A residual block: two 3x3 convolutions, or a bottleneck with the stride in its 3x3."""

    features: int
    stride: int
    bottleneck: bool
    norm: str
    dtype: jnp.dtype | None = None

    @nn.compact
    def __call__(self, x: Array) -> Array:
        def conv_norm(name, features, kernel, stride=1):
            return _ConvNorm(features, kernel, stride, self.norm, self.dtype, name=name)

        out = self.features
        if self.bottleneck:
            y = relu(conv_norm('conv1', out // 4, 1)(x))
            y = relu(conv_norm('conv2', out // 4, 3, self.stride)(y))
            y = conv_norm('conv3', out, 1)(y)
        else:
            y = relu(conv_norm('conv1', out, 3, self.stride)(x))
            y = conv_norm('conv2', out, 3)(y)
        if self.stride > 1 or x.shape[-1] != out:
            x = conv_norm('shortcut', out, 1, self.stride)(x)
        return relu(x + y)


class ResNet(nn.Module):
    """ResNet that returns the feature maps of its four stages, at strides 4, 8, 16 and 32.

    With `stem_stride` 2 all strides are halved, to keep the detail of small images.
    """

    blocks: tuple[int, int, int, int]
    widths: tuple[int, int, int, int] = (256, 512, 1024, 2048)
    stem_width: int = 64
    stem_stride: int = 4
    bottleneck: bool = True
    norm: str = 'frozen'
    dtype: jnp.dtype | None = None
    rematerialize: bool = False

    @nn.compact
    def __call__(self, image: Array) -> list[Array]:
        """[B, H, W, 3] normalised -> maps [B, H / s, W / s, width], finest first."""
        kernel = 7 if self.stem_stride == 4 else 3
        stem = _ConvNorm(self.stem_width, kernel, 2, self.norm, self.dtype, name='stem')
        x = relu(stem(image))
        if self.stem_stride == 4:
            x = nn.max_pool(x, (3, 3), strides=(2, 2), padding=((1, 1), (1, 1)))
        make_block = nn.remat(_Block) if self.rematerialize else _Block
        maps = []
        for stage, (count, width) in enumerate(zip(self.blocks, self.widths, strict=True)):
            for i in range(count):
                stride = 2 if i == 0 and stage > 0 else 1
                name = f'res{stage + 2}_{i}'
                block = make_block(width, stride, self.bottleneck, self.norm, self.dtype, name=name)
                x = block(x)
            maps.append(x)
        return maps


SMALL = dict(
    blocks=(1, 1, 1, 1), widths=(32, 64, 96, 128), stem_width=32, bottleneck=False, norm='group'
)
RESNETS = {
    'resnet50': dict(blocks=(3, 4, 6, 3)),
    'resnet101': dict(blocks=(3, 4, 23, 3)),
    'small': dict(SMALL, stem_stride=2),
    'small_stride4': dict(SMALL, widths=(32, 64, 128, 192)),
}
