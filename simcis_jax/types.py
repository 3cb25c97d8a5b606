"""Data types that the packages exchange, and the shape letters used in all docstrings.

    B  images in the batch            C  classes of the data set (rows of the class head)
    H, W  image height, width         D  hidden dimension (embedding of a query or token)
    h, w  height, width at stride 4   Q  object queries of an image
    S  tokens: all positions of the   V  virtual queries of an image (0 if there are none)
       three decoder feature maps     T  target slots of an image (padded with label -1)
    L  decoder outputs: one of the    K  bank slots of a class
       initial queries, then one      P  points sampled on a mask
       per decoder layer

Neither targets nor predictions hold a stack of full-size masks: targets are one segment map, and
predicted masks stay factored as embeddings [.., Q, D] and pixel features [h, w, D] until they are
needed.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import flax.struct
import jax

from simcis_jax.errors import InputError
from simcis_jax.precision import einsum

Array = jax.Array


@dataclasses.dataclass(frozen=True)
class Categories:
    """The classes of a data set; the label of a class is its position here."""

    names: tuple[str, ...]
    is_thing: tuple[bool, ...]
    colors: tuple[tuple[int, int, int], ...]  # RGB, one per class, for pictures.
    ids: tuple[int, ...] = ()  # Category ids in the data set's files; default: the labels.

    def __post_init__(self):
        object.__setattr__(self, 'ids', self.ids or tuple(range(len(self.names))))
        if len(set(self.names)) < len(self.names):
            raise InputError(f'Category names must be unique, got {self.names}.')
        lengths = [len(column) for column in (self.names, self.is_thing, self.colors, self.ids)]
        if len(set(lengths)) > 1:
            raise InputError(
                f'Categories need one name, thing flag, colour and id per class, got {lengths}.'
            )

    def __len__(self) -> int:
        return len(self.names)

    @property
    def words(self) -> tuple[str, ...]:
        """Name and kind of each class, for messages."""
        kinds = ('a thing' if is_thing else 'stuff' for is_thing in self.is_thing)
        return tuple(f'{name!r} ({kind})' for name, kind in zip(self.names, kinds, strict=True))


@flax.struct.dataclass
class Targets:
    """Ground truth or merged targets: segments that never overlap, valid slots first."""

    segment_map: Array  # [B, H, W] uint8 (int32 if T > 255); 0 = void, k = segment in slot k - 1.
    labels: Array  # [B, T] int32, class of each slot; -1 = padding.
    boxes: Array  # [B, T, 4] float32, cx, cy, w, h in [0, 1].
    dropped: Array  # [B] int32, segments left out because all T slots were taken.

    @property
    def valid(self) -> Array:
        """[B, T] bool: slots that hold a segment."""
        return self.labels >= 0


@flax.struct.dataclass
class Batch:
    """The input of a train step, made by the data pipeline."""

    image: Array  # [B, H, W, 3] uint8, RGB.
    targets: Targets


@flax.struct.dataclass
class StageArrays:
    """A stage as arrays, so that one compiled train step serves all stages."""

    past: Array  # [C] bool, C^1..t-1.
    current: Array  # [C] bool, C^t.
    num_steps: Array  # [] int32, train steps of the stage.
    learning_rate: Array  # [] float32, before any decay.
    index: Array | None = None  # [] int32; 0 is the base stage.

    @property
    def seen(self) -> Array:
        """[C] bool: C^1..t."""
        return self.past | self.current


@flax.struct.dataclass
class StageOfEach:
    """The stages, from 0, that queries and classes belong to."""

    queries: Array  # [Q] int32
    classes: Array  # [C] int32


@flax.struct.dataclass
class Selection:
    """The queries that query pre-alignment (QPA) selected from the tokens.

    Learned queries have no tokens: `token_logits` then has N = 0 and positions are 0..Q-1.
    """

    token_logits: Array  # [B, N, C] class logits of the tokens at the N `scored_positions`.
    positions: Array  # [B, Q] int32, the selected tokens, best first.
    queries: Array  # [B, Q, D] features of the selected tokens, not detached.


@flax.struct.dataclass
class Predictions:
    """All decoder outputs: index 0 is that of the initial queries, -1 that of the last layer.

    In a compiled program, fields that nobody reads cost nothing.
    """

    class_logits: Array  # [L, B, Q, C]; [L, B, Q, C + 1] with a head that has "no object".
    mask_embeddings: Array  # [L, B, Q, D]
    boxes: Array | None  # [L, B, Q, 4] cx, cy, w, h in [0, 1]; None = the queries have none.
    virtual_class_logits: Array  # [L, B, V, C]
    mask_features: Array  # [B, h, w, D]
    selection: Selection
    # What the class logits mean, see `model.class_logits`.
    head: str = flax.struct.field(pytree_node=False, default='sigmoid')
    # What the mask logits mean, see `model.mask_logits`.
    masks: str = flax.struct.field(pytree_node=False, default='sigmoid')
    queries: Array | None = None  # [L, B, Q, D] of the decoder, before the norm of the heads.
    # Maps [B, h', w', D'] of 'backbone', finest first, and of 'pixel_decoder', coarsest first.
    features: dict[str, tuple[Array, ...]] | None = None
    stages: StageOfEach | None = None  # None = all queries and classes are alike.
    # [L, B, Q, C] if the queries that the teacher selected were decoded as well.
    replayed_class_logits: Array | None = None

    def mask_logits(self, layer: int = -1) -> Array:
        """Mask logits [B, Q, h, w] of one decoder output."""
        return einsum('bqd,bhwd->bqhw', self.mask_embeddings[layer], self.mask_features)


@flax.struct.dataclass
class TrainState:
    """Everything that a train step changes."""

    step: Array  # [] int32, number of finished steps of this stage.
    params: Any
    opt_state: Any
    memory: Any  # What the method carries from step to step and from stage to stage.
    key: Array  # Random key of the stage.
    skipped: Array  # [] int32, steps of this stage that were skipped as non-finite.


@flax.struct.dataclass
class VirtualQueries:
    """Stored queries of past classes, replayed together with the selected queries."""

    queries: Array  # [B, V, D]
    labels: Array  # [B, V] int32; -1 = nothing was stored yet: the row is ignored.


@dataclasses.dataclass(frozen=True)
class MemoryTable:
    """What the report of a run shows of the memory of a method."""

    title: str
    note: str
    caption: str
    columns: Sequence[str]  # The last one is text, the others are numbers.
    rows: Sequence[Sequence[str]]


@dataclasses.dataclass(frozen=True)
class MemoryFormat:
    """The memory of a method outside of training: in files of its published code, in reports."""

    flags: Mapping[str, str]  # Flag of `simcis_jax.convert` -> what its file holds.
    read: Callable[[Mapping[str, str], Any], Any]  # (path by flag, empty memory) -> memory.
    write: Callable[[Mapping[str, str], Mapping[str, Any]], None]  # (path by flag, its arrays).
    fields: Callable[[Any], Mapping[str, Any]]  # Memory -> keys of the method that it determines.
    table: Callable[[Mapping[str, Any], Sequence[str]], MemoryTable]  # (its arrays, class names).
