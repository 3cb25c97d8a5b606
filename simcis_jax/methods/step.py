"""What the hooks of a method read in a train step, and the loss terms that they return."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import flax.struct
import jax
from jax import Array

from simcis_jax.losses.segmentation import Matches, PointSampling, query_labels
from simcis_jax.losses.weights import LossWeights
from simcis_jax.types import Batch, Predictions, StageArrays, Targets, VirtualQueries

# Independent random streams per image. Those of a method are METHOD, METHOD + 1 and so on.
MATCHING, SAMPLING, REPLAY, METHOD = range(4)
DEPTH = 2**16  # Of stochastic depth.


def static(default: Any = None) -> Any:
    """A field that is part of the compiled program."""
    return flax.struct.field(pytree_node=False, default=default)


@flax.struct.dataclass
class Step:
    """A train step on the images of one device, or on a microbatch of them.

    The fields of the last group are computed in this order by the hook that is named, and are None
    before. What no hook reads costs nothing, because it is removed from the compiled program.
    """

    # The run.
    model: nn.Module | None = static()
    weights: LossWeights = static(LossWeights())
    sampling: PointSampling = static(PointSampling())
    # Whether only classes seen so far select queries and compete in the softmax head.
    mask_unseen: bool = static(True)
    # Paths of the parameters that the stage does not train.
    frozen: frozenset[str] = static(frozenset())

    # What the step starts with.
    stage: StageArrays | None = None
    batch: Batch | None = None  # Its targets are the ground truth.
    memory: Any = ()  # That of the method, as `update_memory` left it.
    key: Array | None = None  # [] random key of the step; see `keys`.
    rows: Array | None = None  # [B] int32, the row of each image in the global batch.

    # What it computes.
    teacher: Predictions | None = None  # Without gradient; None if there is no teacher.
    targets: Targets | None = None  # `targets`
    totals: Mapping[str, Array] | None = None  # `totals`, summed over the global batch.
    params: Any = None  # Of the student.
    virtual: VirtualQueries | None = None  # `virtual_queries`
    student: Predictions | None = None  # `predict`
    matches: Matches | None = None  # `match`

    @property
    def selecting(self) -> Array | None:
        """[C] bool: classes that select queries or compete in the student; None = all."""
        return self.stage.seen if self.mask_unseen else None

    @property
    def matched_labels(self) -> Array:
        """The label [L, B, Q] of the target of every query, -1 if it has none."""
        num_queries = self.student.class_logits.shape[2]
        over_images = jax.vmap(lambda queries, labels: query_labels(queries, labels, num_queries))
        over_outputs = jax.vmap(over_images, in_axes=(0, None))
        return over_outputs(self.matches.queries, self.targets.labels)

    def keys(self, stream: int) -> Array:
        """Random keys [B] for one purpose: they depend on the image, not on its device."""
        key = jax.random.fold_in(self.key, stream)
        return jax.vmap(lambda row: jax.random.fold_in(key, row))(self.rows)


@flax.struct.dataclass
class Term:
    """A loss term. The log shows it normalised, without the weight, of the last decoder output."""

    sum: Array  # [] or [L], summed over the images of the step.
    weight: float = 1.0  # In the total loss.
    per: str = static('image')  # What divides it: 'image', 'target' or another of `Step.totals`.
