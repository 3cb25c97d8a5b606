"""A Mask2Former to which every later stage adds prompts: queries with heads of their own.

Prompts attend to the image and to the prompts of their stage, not to other queries, so that what
earlier stages predict stays the same. Besides those of Mask2Former, there are the parameters

    heads/class_head   an MLP for the classes of the first stage
    heads/no_object    an MLP for "no object", which all queries share
    newest             prompts, mask head and class head of the newest stage
    finished           those of later stages, stacked; the slot of the newest one is not read

A stage trains `newest`, which moves to its slot of `finished` when the next stage begins. The
shapes are those of all stages, so that one program serves every later stage.
"""

from __future__ import annotations

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from einops import rearrange
from jax import Array

from simcis_jax.model.class_logits import without_unseen
from simcis_jax.model.layers import MLP, LayerNorm
from simcis_jax.model.mask2former import Mask2Former
from simcis_jax.model.masked_decoder import decoder_memory
from simcis_jax.types import Predictions, Selection, StageOfEach

ROWS = ('all', 'first', 'newest')  # Which queries are decoded: those of all stages, or of one.


class SharedHeads(nn.Module):
    """The heads of the first stage, and the norm and "no object" of all stages."""

    num_classes: int
    hidden_dim: int

    def setup(self):
        """Creates the heads."""
        width = self.hidden_dim
        self.norm = LayerNorm()
        self.mask_head = MLP((width, width, width))
        self.class_head = MLP((width, width, self.num_classes))
        self.no_object = MLP((width, width, 1))


class PromptedMask2Former(Mask2Former):
    """Mask2Former without boxes, with learned queries and prompts of later stages."""

    stages: tuple[tuple[int, ...], ...] = ()  # The classes that every stage adds.
    num_prompts: int = 10  # Of a stage.
    layer_positions: bool = True  # Prompts have positions of their own in every decoder layer.

    @property
    def known(self) -> tuple[tuple[int, ...], ...]:
        """The stages whose classes the network has."""
        return tuple(stage for stage in self.stages if max(stage) < self.num_classes)

    @property
    def columns(self) -> np.ndarray:
        """The place [C] of every class among the outputs of all class heads, in order."""
        first, *later = self.known
        starts = len(first) + self._width * np.arange(-1, len(later))
        starts[0] = 0
        places = np.zeros(self.num_classes, np.int32)
        for start, labels in zip(starts, self.known, strict=True):
            places[list(labels)] = start + np.arange(len(labels))
        return places

    @property
    def class_stages(self) -> np.ndarray:
        """The stage [C] of every class, from 0."""
        stages = np.zeros(self.num_classes, np.int32)
        for index, labels in enumerate(self.known):
            stages[list(labels)] = index
        return stages

    @property
    def _width(self) -> int:
        """Outputs of the class head of a later stage: the most classes that one adds."""
        return max((len(labels) for labels in self.known[1:]), default=0)

    @property
    def _mask_mlp(self) -> MLP:
        return MLP((self.hidden_dim,) * 3, parent=None)

    @property
    def _class_mlp(self) -> MLP:
        return MLP((self.hidden_dim, self.hidden_dim, self._width), parent=None)

    def setup(self):
        """Creates the submodules and the parameters of the prompts."""
        super().setup()
        if len(self.known) > 1:
            number = len(self.known) - 1
            self.newest = self.param('newest', self._random_prompts)
            self.finished = self.param(
                'finished',
                lambda key: jax.tree.map(
                    lambda x: jnp.zeros((number, *x.shape)), self._random_prompts(key)
                ),
            )

    def make_heads(self) -> SharedHeads:
        """The heads of the first stage."""
        return SharedHeads(len(self.known[0]), self.hidden_dim)

    def _random_prompts(self, key: Array) -> dict[str, Any]:
        num_layers = max(1, self.decoder_layers) if self.layer_positions else 1
        shape, token = (self.num_prompts, self.hidden_dim), jnp.zeros((1, self.hidden_dim))
        features, positions, mask_key, class_key = jax.random.split(key, 4)
        return {
            'prompts': {
                'features': jax.random.normal(features, shape),
                'positions': jax.random.normal(positions, (num_layers, *shape)),
            },
            'mask_head': self._mask_mlp.init(mask_key, token)['params'],
            'class_head': self._class_mlp.init(class_key, token)['params'],
        }

    def __call__(
        self,
        image: Array,
        seen: Array | None = None,
        virtual_queries: None = None,
        *,
        size: Array | None = None,
        depth_keys: Array | None = None,
        rows: str = 'all',
    ) -> Predictions:
        """Predictions of a batch of images.

        Args:
            image: [B, H, W, 3] in 0..255, RGB; H and W are multiples of the coarsest stride.
            seen: [C] bool, the classes of the stages so far, which also tell the newest stage;
                None = all. Queries of stages to come are decoded, and must not be read.
            virtual_queries: there are none.
            size: [B, 2] height and width of each image without its padding; None = no padding.
            depth_keys: [B] random keys of stochastic depth, in training; None = no drop.
            rows: which queries are decoded, one of `ROWS`.

        Raises:
            InputError: H or W is no multiple of the stride.
        """
        features, mask_features = self.encode(image, size, depth_keys)
        return self.decode(features, mask_features, seen, rows)

    def decode(
        self,
        features: dict[str, tuple[Array, ...]],
        mask_features: Array,
        seen: Array | None = None,
        rows: str = 'all',
    ) -> Predictions:
        """Predictions from the maps that `encode` returns; other arguments as in `__call__`.

        Raises:
            ValueError: `rows` is none of `ROWS`.
        """
        if rows not in ROWS:
            raise ValueError(f'rows={rows!r} is unknown; one of {ROWS}.')
        if seen is None:
            seen = jnp.ones(self.num_classes, bool)
        memory = decoder_memory(features['pixel_decoder'], self.level_embedding, mask_features)
        groups = self._prompts(seen)
        decoded = None if rows == 'first' else groups
        if rows == 'newest':
            decoded = jax.tree.map(lambda x: x[None], self.newest)
        queries, positions = self._queries(decoded, with_first=rows != 'newest')
        num_first = 0 if rows == 'newest' else self.num_queries
        query_stages = self._query_stages(seen, rows)
        batch_size, num_rows = len(mask_features), len(queries)

        def heads(queries: Array) -> tuple[Array, Array]:
            x = self.heads.norm(queries.astype(jnp.float32))
            logits = without_unseen(self._class_logits(x, groups), seen)
            return logits, self._mask_embeddings(x, decoded, num_first)

        queries = jnp.broadcast_to(queries, (batch_size, *queries.shape))
        same_stage = query_stages[:, None] == query_stages
        outputs = self.decoder(
            queries,
            jnp.broadcast_to(positions[:, None], (len(positions), *queries.shape)),
            queries[:, :0],
            memory,
            stop_gradient=False,
            heads=heads,
            companions=jnp.broadcast_to(same_stage, (batch_size, *same_stage.shape))
            if rows == 'all'
            else None,
        )
        no_tokens = outputs.class_logits[0, :, :0]
        places = jnp.broadcast_to(jnp.arange(num_rows), (batch_size, num_rows))
        return Predictions(
            class_logits=outputs.class_logits,
            mask_embeddings=outputs.mask_embeddings,
            boxes=None,
            virtual_class_logits=outputs.class_logits[:, :, :0],
            mask_features=mask_features,
            selection=Selection(no_tokens, places, queries),
            head=self.head,
            queries=outputs.queries,
            features=features,
            stages=StageOfEach(query_stages, jnp.asarray(self.class_stages)),
        )

    def _prompts(self, seen: Array) -> Any:
        """Prompts and heads of all later stages, stacked; None if there are no later stages."""
        if len(self.known) == 1:
            return None
        later = np.array([labels[0] for labels in self.known[1:]])
        is_newest = jnp.arange(len(later)) == seen[later].sum() - 1

        def fill(stack, newest):
            return jnp.where(is_newest.reshape(-1, *[1] * newest.ndim), newest, stack)

        return jax.tree.map(fill, self.finished, self.newest)

    def _queries(self, groups: Any, *, with_first: bool) -> tuple[Array, Array]:
        """Features [N, D] and positions [layers, N, D] of the queries that are decoded."""
        features, positions, num_layers = [], [], max(1, self.decoder_layers)
        if with_first:
            (first,), (places,) = self.learned_queries(1)
            features.append(first)
            positions.append(jnp.broadcast_to(places, (num_layers, *places.shape)))
        if groups is not None:
            prompts = groups['prompts']
            features.append(rearrange(prompts['features'], 'g p d -> (g p) d'))
            places = rearrange(prompts['positions'], 'g l p d -> l (g p) d')
            positions.append(jnp.broadcast_to(places, (num_layers, *places.shape[1:])))
        return jnp.concatenate(features), jnp.concatenate(positions, axis=1)

    def _query_stages(self, seen: Array, rows: str) -> Array:
        """The stage [N] of every query that is decoded."""
        first = jnp.zeros(self.num_queries, jnp.int32)
        if rows == 'first':
            return first
        if rows == 'newest':
            newest = jnp.where(seen, self.class_stages, 0).max()
            return jnp.broadcast_to(newest, self.num_prompts)
        later = jnp.repeat(jnp.arange(1, len(self.known)), self.num_prompts)
        return jnp.concatenate([first, later.astype(jnp.int32)])

    def _class_logits(self, x: Array, groups: Any) -> Array:
        """Logits [B, N, C + 1] of normalised queries [B, N, D], from the heads of all stages."""
        logits = self.heads.class_head(x)
        if groups is not None:
            apply = jax.vmap(lambda params: self._class_mlp.apply({'params': params}, x))
            later = rearrange(apply(groups['class_head']), 'g b n m -> b n (g m)')
            logits = jnp.concatenate([logits, later], axis=-1)
        return jnp.concatenate([logits[..., self.columns], self.heads.no_object(x)], axis=-1)

    def _mask_embeddings(self, x: Array, groups: Any, num_first: int) -> Array:
        """Mask embeddings [B, N, D] of normalised queries, each from the head of its stage."""
        embeddings = [self.heads.mask_head(x[:, :num_first])] if num_first else []
        if groups is not None:
            number = len(groups['prompts']['features'])
            prompts = rearrange(x[:, num_first:], 'b (g p) d -> g b p d', g=number)
            apply = jax.vmap(lambda params, x: self._mask_mlp.apply({'params': params}, x))
            embeddings.append(
                rearrange(apply(groups['mask_head'], prompts), 'g b p d -> b (g p) d')
            )
        return jnp.concatenate(embeddings, axis=1)
