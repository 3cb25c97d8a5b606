"""FuTCR (arXiv 2605.12451, May 2026): SimCIS that prepares mask features for future classes.

A query whose mask covers mostly unlabelled pixels marks a region that may be of a future class.
Two losses act on the mask features, in every stage:

contrast     pulls the pixels of a region towards its prototype, the mean feature over the region,
             and pushes them away from those of the other regions
repulsion    pushes unlabelled pixels away from the prototypes of the known classes

Both are computed with the masks of the last layer and with those of the initial queries. As in the
published code, they see the images of one device; with several devices or microbatches, the loss
is the mean over them. The published auxiliary clustering trains nothing and is left out.
"""

from __future__ import annotations

import dataclasses
from typing import ClassVar

import jax
import jax.numpy as jnp
from jax import Array

from simcis_jax.methods.simcis import SimCIS
from simcis_jax.methods.step import METHOD, Step, Term
from simcis_jax.precision import einsum
from simcis_jax.settings.declare import declare

# Random streams of contrast and repulsion, in the last and in the first decoder output.
LAST_STREAMS, FIRST_STREAMS = (METHOD, METHOD + 1), (METHOD + 2, METHOD + 3)


@dataclasses.dataclass(frozen=True)
class FuTCR(SimCIS):
    """SimCIS, and two losses on the mask features for classes to come."""

    contrast_weight: float = declare(0.5, 'Weight of the contrast.', at_least=0)
    repulsion_weight: float = declare(0.25, 'Weight of the repulsion.', at_least=0)
    contrast_temperature: float = declare(0.07, 'Temperature of the contrast.', above=0)
    region_threshold: float = declare(
        0.5, 'Mask probability above which a pixel is in a region.', at_least=0, at_most=1
    )
    region_pixels: int = declare(20, 'Pixels that a region must have.', at_least=1)
    contrast_pixels: int = declare(50, 'Pixels drawn of each region.', at_least=1)
    repulsion_pixels: int = declare(1024, 'Unlabelled pixels drawn of a batch.', at_least=1)

    changes_first_stage: ClassVar[bool] = True

    def losses(self, step: Step) -> dict[str, Term]:
        """The terms of SimCIS, contrast and repulsion."""
        features, labels = step.student.mask_features, class_map(step)
        contrasts, repulsions = 0.0, 0.0
        for layer, (contrast, repulsion) in ((-1, LAST_STREAMS), (0, FIRST_STREAMS)):
            masks = step.student.mask_logits(layer)
            pixels, selected = self.regions(masks, labels)
            contrasts += self.contrast(features, pixels, selected, step.keys(contrast))
            repulsions += self.repulsion(features, labels, step.stage.seen, step.keys(repulsion))
        # Means over the images of the device, where other terms are sums.
        return super().losses(step) | {
            'contrast': Term(len(labels) * contrasts, self.contrast_weight),
            'repulsion': Term(len(labels) * repulsions, self.repulsion_weight),
        }

    def regions(self, masks: Array, labels: Array) -> tuple[Array, Array]:
        """The pixels [B, Q, h, w] of every query, and which queries [B, Q] mark a region.

        Masks [B, Q, h, w] get no gradient from this; labels [B, h, w] are -1 if unlabelled.
        """
        pixels = jax.nn.sigmoid(masks) > self.region_threshold
        size = pixels.sum(axis=(2, 3))
        unlabelled = (pixels & (labels < 0)[:, None]).sum(axis=(2, 3))
        return pixels, (size >= self.region_pixels) & (2 * unlabelled > size)

    def contrast(self, features: Array, pixels: Array, selected: Array, keys: Array) -> Array:
        """Mean cross-entropy [] of pixels to the prototype of their region, among those of all.

        Args:
            features: [B, h, w, D].
            pixels: [B, Q, h, w], selected: [B, Q]; see `regions`.
            keys: [B] random keys.
        """
        (num_images, num_queries), width = selected.shape, features.shape[-1]
        size = jnp.maximum(pixels.sum(axis=(2, 3)), 1)
        sums = einsum('bqhw,bhwd->bqd', pixels.astype(features.dtype), features)
        prototypes = unit(sums / size[..., None]).reshape(-1, width)
        inside = pixels.reshape(num_images, num_queries, -1)
        drawn, exists = jax.vmap(lambda *x: draw(*x, self.contrast_pixels))(keys, inside)
        exists &= selected[..., None]
        flat = features.reshape(num_images, -1, width)
        ours = unit(jax.vmap(lambda image, drawn: image[drawn])(flat, drawn))  # [B, Q, n, D]
        cosine = einsum('bqnd,rd->bqnr', ours, prototypes)
        logits = jnp.where(selected.reshape(-1), cosine / self.contrast_temperature, -jnp.inf)
        logits = jnp.where(exists[..., None], logits, 0.0)  # A row of -inf would have no gradient.
        own = jnp.arange(num_images * num_queries).reshape(num_images, num_queries, 1, 1)
        entropy = -jnp.take_along_axis(jax.nn.log_softmax(logits), own, axis=-1)[..., 0]
        return jnp.where(exists, entropy, 0.0).sum() / jnp.maximum(exists.sum(), 1)

    def repulsion(self, features: Array, labels: Array, known: Array, keys: Array) -> Array:
        """The largest cosine of an unlabelled pixel to a known class, if positive; their mean [].

        Args:
            features: [B, h, w, D].
            labels: [B, h, w], -1 = unlabelled.
            known: [C] bool; the prototype of a class is the mean over its pixels in the batch.
            keys: [B] random keys.
        """
        flat, labels = features.reshape(-1, features.shape[-1]), labels.ravel()
        num_classes = len(known)
        classes = jnp.where((labels >= 0) & known[labels], labels, num_classes)
        sums = jax.ops.segment_sum(flat, classes, num_classes + 1)[:-1]
        counts = jnp.bincount(classes, length=num_classes + 1)[:-1]
        drawn, exists = draw(keys[0], labels < 0, self.repulsion_pixels)
        prototypes = unit(sums / jnp.maximum(counts, 1)[:, None])
        cosine = einsum('nd,cd->nc', unit(flat[drawn]), prototypes)
        largest = jnp.where(counts > 0, cosine, 0.0).max(axis=-1)
        return jnp.where(exists, jnp.maximum(largest, 0.0), 0.0).sum() / jnp.maximum(
            exists.sum(), 1
        )


def class_map(step: Step) -> Array:
    """The class [B, h, w] at the top left pixel of every mask feature; -1 = unlabelled."""
    segment_map, height = step.targets.segment_map, step.student.mask_features.shape[1]
    stride = segment_map.shape[1] // height
    classes = jnp.pad(step.targets.labels, ((0, 0), (1, 0)), constant_values=-1)
    return jax.vmap(lambda classes, segments: classes[segments])(
        classes, segment_map[:, ::stride, ::stride].astype(jnp.int32)
    )


def draw(key: Array, allowed: Array, number: int) -> tuple[Array, Array]:
    """Random positions [..., n] of those allowed [..., N] bool, and whether each is allowed.

    No position is drawn twice; n is `number`, or N if that is less.
    """
    rank = jnp.where(allowed, jax.random.uniform(key, allowed.shape), -1.0)
    highest, drawn = jax.lax.top_k(rank, min(number, allowed.shape[-1]))
    return drawn, highest >= 0


def unit(x: Array) -> Array:
    """The vectors [..., D] with length 1; those of length 0 stay 0 and get no gradient."""
    square = jnp.sum(x * x, axis=-1, keepdims=True)
    return jnp.where(square > 0, x * jax.lax.rsqrt(jnp.where(square > 0, square, 1.0)), 0.0)
