"""VQ, virtual queries (SimCIS, section 3.4): a bank of past queries, replayed against forgetting.

Every class has a ring buffer of the queries that were last matched to it. In later stages, stored
queries are sampled, rare classes more often, and decoded together with the selected ones.
"""

from __future__ import annotations

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
from jax import Array


@flax.struct.dataclass
class QueryBank:
    """A ring buffer of K queries per class, and how often each class occurs in a stage."""

    queries: Array  # [C, K, D] float32.
    written: Array  # [C] int32, number of queries ever stored; the next goes to slot written % K.
    counts: Array  # [C] float32, number of pseudo-labels per class in the images of the stage.


def create(num_classes: int, bank_size: int, hidden_dim: int) -> QueryBank:
    """An empty bank for C = `num_classes`, K = `bank_size` and D = `hidden_dim`."""
    return QueryBank(
        queries=jnp.zeros((num_classes, bank_size, hidden_dim)),
        written=jnp.zeros(num_classes, jnp.int32),
        counts=jnp.zeros(num_classes),
    )


def stored(bank: QueryBank) -> tuple[int, int]:
    """The number of queries in a bank, and the bytes of these, of `written` and of `counts`."""
    _, bank_size, hidden_dim = bank.queries.shape
    number = int(np.minimum(bank.written, bank_size).sum())
    num_bytes = number * hidden_dim * bank.queries.dtype.itemsize
    return number, num_bytes + bank.written.nbytes + bank.counts.nbytes


def places(written: Array, labels: Array, bank_size: int) -> tuple[Array, Array]:
    """Where to store queries of these labels [N]: class and slot, each [N] int32.

    No two queries get the same place, for JAX does not say which of two writes wins. What is not
    to be stored has class C, out of range: label -1, and all but the last K of one class.

    Args:
        written: [C] int32, queries ever stored of each class.
        labels: [N] int32; -1 = do not store.
        bank_size: K.
    """
    num_classes = len(written)
    one_hot = labels[:, None] == jnp.arange(num_classes)
    label = jnp.maximum(labels, 0)
    rank = jnp.take_along_axis(jnp.cumsum(one_hot, axis=0) - 1, label[:, None], axis=1)[:, 0]
    overwritten = rank < one_hot.sum(axis=0)[label] - bank_size
    rows = jnp.where((labels < 0) | overwritten, num_classes, labels)
    return rows, (written[label] + rank) % bank_size


def enqueue(bank: QueryBank, queries: Array, labels: Array) -> QueryBank:
    """Stores queries [N, D] by their labels [N], in order; label -1 = do not store.

    Of more than K queries of one class the last K are kept, as if stored one by one.
    """
    num_classes, bank_size, _ = bank.queries.shape
    rows, slots = places(bank.written, labels, bank_size)
    added = jax.nn.one_hot(labels, num_classes, dtype=jnp.int32).sum(axis=0)
    return bank.replace(
        queries=bank.queries.at[rows, slots].set(queries, mode='drop'),
        written=bank.written + added,
    )


def sampling_weights(counts: Array, past: Array, alpha: float) -> Array:
    """Unnormalised sampling weight [C] of each class (equation 9): rare classes weigh more.

    The weight of past class c is (sum_k s_k / s_c) ** alpha, where s = counts + 1 and the sum runs
    over past classes; that of all other classes is 0.

    Args:
        counts: [C] float32, number of pseudo-labels per class.
        past: [C] bool.
        alpha: exponent.
    """
    smoothed = counts + 1.0
    total = jnp.sum(jnp.where(past, smoothed, 0.0))
    return jnp.where(past, (total / smoothed) ** alpha, 0.0)


def sample(
    bank: QueryBank, key: Array, past: Array, num_queries: int, *, alpha: float
) -> tuple[Array, Array]:
    """Samples virtual queries [V, D] and their labels [V] for one image, with replacement.

    Classes without stored queries are not sampled; if no past class has any, the labels are -1.

    Args:
        bank: the stored queries.
        key: random key of the image.
        past: [C] bool, classes to sample from.
        num_queries: V.
        alpha: 0 samples all classes equally often; larger values favour rare classes.
    """
    class_key, slot_key = jax.random.split(key)
    drawable = past & (bank.written > 0)
    weights = jnp.where(drawable, sampling_weights(bank.counts, past, alpha), 0.0)
    labels = jax.random.categorical(class_key, jnp.log(weights), shape=(num_queries,))
    stored = jnp.clip(bank.written[labels], 1, bank.queries.shape[1])
    slots = jax.random.randint(slot_key, (num_queries,), 0, stored)
    return bank.queries[labels, slots], jnp.where(drawable.any(), labels, -1)
