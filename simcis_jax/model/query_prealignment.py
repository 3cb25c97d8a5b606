"""QPA, lazy query pre-alignment (SimCIS, section 3.2).

Object queries are not learned: they are the pixel features that the class head scores highest, so
that a query keeps its meaning from stage to stage. The rows of the class head (the prototypes)
score every encoder token; the best N become the queries, each with an initial box at its pixel.
"""

from __future__ import annotations

import flax.linen as nn
import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from simcis_jax.errors import InputError
from simcis_jax.model.layers import LayerNorm, Linear
from simcis_jax.model.pixel_decoder import grid_centres
from simcis_jax.model.prediction_heads import PredictionHeads


@flax.struct.dataclass
class Candidates:
    """Every token as a candidate query."""

    tokens: Array  # [B, S, D]
    class_logits: Array  # [B, S, C], without gradient.
    references: Array  # [S, 4] inverse sigmoid of the reference box of each token.


def proposals(shapes: tuple[tuple[int, int], ...]) -> tuple[np.ndarray, np.ndarray]:
    """The reference box of every token, as logits [S, 4], and whether it is valid [S] bool.

    Boxes are centred on their token, with side 0.05 on the coarsest map, doubled on each finer one.
    A box with a coordinate outside (0.01, 0.99) is invalid: those on the border of a map with more
    than 50 rows or columns.
    """
    side = np.repeat(
        [0.05 * 2**level for level in range(len(shapes))], [h * w for h, w in shapes]
    ).astype(np.float32)
    boxes = np.concatenate([grid_centres(shapes), side[:, None], side[:, None]], axis=-1)
    valid = ((boxes > 0.01) & (boxes < 0.99)).all(axis=-1)
    with np.errstate(divide='ignore'):
        logits = np.where(valid[:, None], np.log(boxes / (1 - boxes)), np.inf)
    return logits.astype(np.float32), valid


def select_queries(class_logits: Array, num_queries: int, seen: Array | None = None) -> Array:
    """Selects the Q tokens with the highest similarity to any prototype: [B, Q], best first.

    Args:
        class_logits: [B, S, C] similarity of every token to every prototype.
        num_queries: Q.
        seen: [C] bool, classes whose prototypes select; None = all, as in the published code, where
            those of future classes select as well.

    Raises:
        InputError: there are fewer tokens than queries.
    """
    num_tokens = class_logits.shape[1]
    if num_queries > num_tokens:
        raise InputError(
            f'model.num_queries={num_queries} is more than the {num_tokens} positions of the '
            'feature maps; use larger images (data.size, evaluation.short_side, or --short_side, '
            '--height and --width) or fewer queries.'
        )
    if seen is not None:
        class_logits = jnp.where(seen, class_logits, -jnp.inf)
    return jax.lax.top_k(class_logits.max(axis=-1), num_queries)[1]


class QueryPrealignment(nn.Module):
    """Scores tokens as candidate queries.

    All tokens are scored without gradient. What is read of a few tokens is computed again from
    these: the gradient would otherwise pass through all of them.
    """

    heads: PredictionHeads

    def setup(self):
        """Creates the layers that turn a token into a query."""
        self.output = Linear(self.heads.hidden_dim)
        self.norm = LayerNorm()

    def __call__(self, tokens: Array, shapes: tuple[tuple[int, int], ...]) -> Candidates:
        """Tokens [B, S, D] -> candidates; tokens without a valid reference box become zero."""
        references, valid = proposals(shapes)
        tokens = tokens * valid[:, None]
        class_logits = jax.lax.stop_gradient(self.heads.classify(self.features(tokens)))
        return Candidates(tokens, class_logits, jnp.asarray(references))

    def features(self, tokens: Array) -> Array:
        """The features [..., D] of tokens [..., D] as queries."""
        return self.norm(self.output(tokens))

    def queries_at(self, candidates: Candidates, positions: Array) -> tuple[Array, Array]:
        """Features [B, Q, D] and initial boxes [B, Q, 4] of the tokens at positions [B, Q]."""
        features = self._features_at(candidates, positions)
        boxes = jax.nn.sigmoid(self.heads.box_head(features) + candidates.references[positions])
        return features, boxes

    def logits_at(self, candidates: Candidates, positions: Array) -> Array:
        """Class logits [B, N, C] of the tokens at positions [B, N], with gradient."""
        return self.heads.classify(self._features_at(candidates, positions))

    def _features_at(self, candidates: Candidates, positions: Array) -> Array:
        return self.features(jnp.take_along_axis(candidates.tokens, positions[..., None], axis=1))
