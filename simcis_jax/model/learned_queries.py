"""Learned queries: parameters instead of selected pixel features."""

from __future__ import annotations

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import Array

from simcis_jax.model.position_encoding import inverse_sigmoid


class LearnedQueries(nn.Module):
    """Query features, and initial boxes or, without them, position encodings as in Mask2Former."""

    num_queries: int
    hidden_dim: int
    has_boxes: bool = True

    @nn.compact
    def __call__(self, batch_size: int) -> tuple[Array, Array]:
        """Query features [B, Q, D], and boxes [B, Q, 4] or position encodings [B, Q, D]."""
        normal = nn.initializers.normal(1.0)
        shape = (self.num_queries, self.hidden_dim)
        features = self.param('features', normal, shape)

        def anywhere(key, shape):
            return inverse_sigmoid(jax.random.uniform(key, shape))

        if self.has_boxes:
            places = jax.nn.sigmoid(self.param('boxes', anywhere, (self.num_queries, 4)))
        else:
            places = self.param('positions', normal, shape)
        return tuple(jnp.broadcast_to(x, (batch_size, *x.shape)) for x in (features, places))
