"""AdamW, grouped as in the published code: slow backbone, no decay on norms and embeddings."""

from __future__ import annotations

import re
from collections.abc import Mapping

import flax.traverse_util
import jax
import jax.numpy as jnp
import optax
from jax import Array

from simcis_jax.settings import OptimizerSettings

FROZEN = re.compile(r'/frozen_[a-z]+$')
BACKBONE = re.compile(r'^resnet/')
# Parameters of norms and embedding tables. The pixel decoder's `level_embed` is a plain parameter
# in the published code and decays; the decoder's `level_embedding` is a table and does not.
NOT_DECAYED = re.compile(r'norm[^/]*/(scale|bias)$|^level_embedding$|^learned_queries/')


def parameter_groups(params: Mapping) -> Mapping:
    """The group of every parameter: 'frozen', or ('backbone' | 'other', decays: bool)."""

    def group(path: str):
        if FROZEN.search(path):
            return 'frozen'
        return 'backbone' if BACKBONE.search(path) else 'other', not NOT_DECAYED.search(path)

    flat = flax.traverse_util.flatten_dict(params, sep='/')
    return flax.traverse_util.unflatten_dict({p: group(p) for p in flat}, sep='/')


def make_optimizer(params: Mapping, settings: OptimizerSettings) -> optax.GradientTransformation:
    """The transformation of gradients into updates for a learning rate of 1.

    The rate is left to `learning_rate`, because it depends on the stage.
    """
    groups = parameter_groups(params)
    is_group = lambda x: isinstance(x, str | tuple)  # noqa: E731

    def where(predicate):
        return jax.tree.map(predicate, groups, is_leaf=is_group)

    trained = optax.chain(
        optax.clip_by_global_norm(settings.clip_norm),
        optax.scale_by_adam(settings.b1, settings.b2),
        optax.add_decayed_weights(settings.weight_decay, mask=where(lambda g: g[1] is True)),
        optax.masked(
            optax.scale(settings.backbone_multiplier), where(lambda g: g[0] == 'backbone')
        ),
        optax.scale(-1.0),
    )
    kind = where(lambda g: 'frozen' if g == 'frozen' else 'trained')
    return optax.partition({'trained': trained, 'frozen': optax.set_to_zero()}, kind)


def learning_rate(step: Array, num_steps: Array, rate: Array, settings: OptimizerSettings) -> Array:
    """The rate at a step (0-based) of a stage: stepwise decay, linear warm-up if any.

    Args:
        step: [] int32, num_steps: [] int32 of the stage.
        rate: [] float32, the stage's rate before decay.
        settings: milestones, factor and warm-up.
    """
    milestones = jnp.asarray(settings.milestones, jnp.float32) * num_steps
    # A milestone that is a whole step decays that step already; float32 may land just above it.
    passed = jnp.sum(step >= milestones * (1 - 1e-6))
    warmup = jnp.minimum(1.0, (step + 1) / max(settings.warmup_steps, 1))
    return rate * warmup * settings.decay_factor**passed
