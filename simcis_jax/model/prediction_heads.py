"""The prediction heads, shared by query selection, the initial queries and every decoder layer."""

from __future__ import annotations

import flax.linen as nn
import jax.numpy as jnp
import numpy as np
from jax import Array

from simcis_jax.model.class_logits import num_columns
from simcis_jax.model.layers import MLP, LayerNorm, Linear


class PredictionHeads(nn.Module):
    """Class head (its rows are the prototypes), mask head and, with `boxes`, box head.

    `class_prior` is the initial probability of every class; None initialises the bias of the class
    head like that of any linear layer, as in the published code.
    """

    num_classes: int
    hidden_dim: int
    class_prior: float | None = None
    head: str = 'sigmoid'  # One of `class_logits.HEADS`.
    boxes: bool = True

    def setup(self):
        """Creates the heads and the norm that they share."""
        bias_init = None
        if self.class_prior is not None:
            bias_init = nn.initializers.constant(-np.log(1 / self.class_prior - 1))
        self.norm = LayerNorm()
        self.class_head = Linear(num_columns(self.head, self.num_classes), bias_init=bias_init)
        self.mask_head = MLP((self.hidden_dim, self.hidden_dim, self.hidden_dim))
        # The last layer starts at zero, so predicted boxes start at their reference boxes.
        if self.boxes:
            self.box_head = MLP((self.hidden_dim, self.hidden_dim, 4), zero_last=True)

    def __call__(self, queries: Array) -> tuple[Array, Array]:
        """Class logits [B, Q, C] and mask embeddings [B, Q, D] of queries [B, Q, D].

        The softmax head has class logits [B, Q, C + 1].
        """
        queries = self.norm(queries.astype(jnp.float32))
        return self.class_head(queries), self.mask_head(queries)

    def classify(self, queries: Array) -> Array:
        """Class logits [..., C] of queries [..., D]: their similarity to the prototypes."""
        return self.class_head(self.norm(queries.astype(jnp.float32)))
