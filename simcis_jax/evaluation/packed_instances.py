"""Instances as they are copied from the device to the host: few masks, packed to bits."""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from simcis_jax.evaluation.mask_runs import RLE, encode_edges, packed_edges
from simcis_jax.evaluation.postprocess import InstanceSegmentation
from simcis_jax.loops import for_each

MASKS_AT_ONCE = 8  # Masks that are copied to the host together.


class PackedInstances(NamedTuple):
    """K instances of Q queries, whose masks are packed to the bits where their runs begin and end.

    Instances of one query share its mask. Of the M = min(Q, K) slots for masks, the first ones
    are used.
    """

    edges: tuple[Array, ...]  # [8, W, ceil(H / 8)] uint8 of `packed_edges`, M masks in all.
    slots: Array  # [K] int32, the mask of each instance.
    labels: Array  # [K] int32; -1 = no instance, or one without a pixel.
    scores: Array  # [K] float32

    def fetch(self) -> PackedInstances:
        """Copies the instances of a batch [B, ...] to the host, without slots that none uses."""
        rest = jax.device_get(self._replace(edges=()))
        num_masks = 1 + np.where(rest.labels >= 0, rest.slots, -1).max()
        edges = self.edges[: -(-num_masks // MASKS_AT_ONCE)]
        return rest._replace(edges=jax.device_get(edges))

    def masks(self, shape: tuple[int, int]) -> list[RLE]:
        """The masks in the slots that were copied, cropped to `shape` = (H, W) of the image."""
        return [mask for edges in self.edges for mask in encode_edges(edges, shape)]


def pack(instances: InstanceSegmentation, masks: Array) -> PackedInstances:
    """Packs the instances of an image, whose queries have the mask logits [Q, H, W]; traced."""
    found = instances.scores > 0
    needed = jnp.zeros(len(masks), bool).at[instances.queries].max(found)
    num_slots = min(len(masks), len(found))
    queries = jnp.flatnonzero(needed, size=num_slots, fill_value=0)
    is_used = jnp.arange(num_slots) < needed.sum()

    def add(slot, edges):
        return edges.at[slot].set(packed_edges(masks[queries[slot]][None] > 0)[0])

    none = jnp.zeros((num_slots, masks.shape[2], -(-masks.shape[1] // 8)), jnp.uint8)
    edges = for_each(is_used, add, none)
    slot_of = jnp.cumsum(needed, dtype=jnp.int32) - 1
    return PackedInstances(
        tuple(edges[i : i + MASKS_AT_ONCE] for i in range(0, num_slots, MASKS_AT_ONCE)),
        slot_of[instances.queries],
        jnp.where(found, instances.labels, -1),
        instances.scores,
    )
