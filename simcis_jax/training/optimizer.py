"""AdamW with the parameter groups of the published code.

The backbone has a lower learning rate; norms and embeddings have no weight decay.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from typing import Any

import flax.traverse_util
import jax
import jax.numpy as jnp
import optax
from jax import Array

from simcis_jax.model.backbones import FAMILIES
from simcis_jax.settings.keys import OptimizerSettings

POWER = 0.9  # Of the polynomial decay.
FROZEN = re.compile(r'/frozen_[a-z]+$')
BACKBONE = re.compile(rf'^({"|".join(FAMILIES)})/')
# Parameters of norms, embeddings and position biases. In the published code, `level_embed` of the
# pixel decoder is a plain parameter and decays; `level_embedding` of the decoder is an nn.Embedding
# and does not.
NOT_DECAYED = re.compile(
    r'norm[^/]*/(scale|bias)$|^level_embedding$|(^learned_queries|/prompts)/'
    r'|/relative_position_bias$'
)


def parameter_groups(params: Mapping, frozen: Collection[str] = ()) -> Mapping:
    """The group of every parameter: 'frozen', or ('backbone' | 'other', has weight decay).

    Args:
        params: arrays or their shapes.
        frozen: paths of parameters that are frozen besides those of frozen norms.
    """

    def group(path: str):
        if FROZEN.search(path) or path in frozen:
            return 'frozen'
        return 'backbone' if BACKBONE.search(path) else 'other', not NOT_DECAYED.search(path)

    flat = flax.traverse_util.flatten_dict(params, sep='/')
    return flax.traverse_util.unflatten_dict({p: group(p) for p in flat}, sep='/')


def without_gradient(params: Mapping, frozen: Collection[str]) -> Any:
    """The parameters; for those with a path in `frozen`, no gradient is computed."""
    if not frozen:
        return params
    flat = flax.traverse_util.flatten_dict(params, sep='/')
    flat |= {path: jax.lax.stop_gradient(flat[path]) for path in frozen}
    return flax.traverse_util.unflatten_dict(flat, sep='/')


def count_parameters(params: Mapping, frozen: Collection[str] = ()) -> tuple[int, int]:
    """Number of trainable parameters, and of all parameters."""
    groups = flax.traverse_util.flatten_dict(parameter_groups(params, frozen))
    sizes = {path: x.size for path, x in flax.traverse_util.flatten_dict(params).items()}
    trainable = sum(size for path, size in sizes.items() if groups[path] != 'frozen')
    return trainable, sum(sizes.values())


def make_optimizer(
    params: Mapping, settings: OptimizerSettings, frozen: Collection[str] = ()
) -> optax.GradientTransformation:
    """AdamW with gradient clipping, at a learning rate of 1; frozen parameters have no state.

    The caller multiplies the updates by `learning_rate`, which depends on the stage.
    """
    groups = parameter_groups(params, frozen)

    def where(predicate):
        return jax.tree.map(predicate, groups, is_leaf=lambda x: isinstance(x, str | tuple))

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
    """The learning rate [] at a step of a stage: linear warm-up, and stepwise or polynomial decay.

    Args:
        step: [] int32, from 0.
        num_steps: [] int32, number of steps of the stage.
        rate: [] float32, base learning rate of the stage.
        settings: decay, milestones, decay factor and warm-up.
    """
    warmup = jnp.minimum(1.0, (step + 1) / max(settings.warmup_steps, 1))
    if settings.decay == 'polynomial':
        return rate * warmup * ((num_steps - step) / num_steps) ** POWER
    milestones = jnp.asarray(settings.milestones, jnp.float32) * num_steps
    # The step at a milestone decays already, though float32 may round the milestone up.
    passed = jnp.sum(step >= milestones * (1 - 1e-6))
    return rate * warmup * settings.decay_factor**passed
