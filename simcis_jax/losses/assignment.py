"""The assignment problem inside a compiled program: shortest augmenting paths (Jonker, Volgenant).

Rows are assigned one after the other. A search grows a tree of shortest paths from the new row
until it reaches a free column; then every row on the path to it takes the next column of the path.
Assigning n rows takes at most n (n + 1) / 2 passes of the search; padding takes none.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

NONE = -1  # The column of a row, or the row of a column, that is not assigned.


class Assignment(NamedTuple):
    """Pairs of the rows so far, and potentials under which each of them is a cheapest one."""

    column_of: Array  # [M] int32, the column of every row.
    row_of: Array  # [N] int32, the row of every column.
    row_potential: Array  # [M] float32
    column_potential: Array  # [N] float32
    num_passes: Array  # [M] int32, of the search for every row.


class Tree(NamedTuple):
    """The shortest paths from one row, as far as they are known."""

    row: Array  # [] int32, the row that is read next; NONE when a free column is reached.
    column: Array  # [] int32, the column reached last.
    distance: Array  # [N] float32, length of the shortest path found to every column.
    previous: Array  # [N] int32, the row before every column on that path.
    settled: Array  # [N] bool, columns whose shortest path is known.
    num_passes: Array  # [] int32


def assign(cost: Array, num_rows: Array | int) -> tuple[Array, Array]:
    """The cheapest one-to-one assignment of the first `num_rows` rows to columns.

    Args:
        cost: [M, N]; columns of inf are not chosen, of the others there are at least `num_rows`.
        num_rows: [] int32, number of real rows, which come first; the others are padding.

    Returns:
        The column of every row [M] int32, -1 for padding, and the number of passes that the search
        for every row took [M] int32.
    """
    size, num_columns = cost.shape
    none = Assignment(
        column_of=jnp.full(size, NONE),
        row_of=jnp.full(num_columns, NONE),
        row_potential=jnp.zeros(size),
        column_potential=jnp.zeros(num_columns),
        num_passes=jnp.zeros(size, jnp.int32),
    )

    def add_row(row: Array, found: Assignment) -> Assignment:
        return _augment(found, row, _search(cost, row, found))

    found = jax.lax.fori_loop(0, num_rows, add_row, none)
    return found.column_of, found.num_passes


def _search(cost: Array, root: Array, found: Assignment) -> Tree:
    """The shortest path from a row [] to a free column."""
    num_columns = cost.shape[1]

    def read_row(tree: Tree) -> Tree:
        length = jnp.where(tree.row == root, 0.0, tree.distance[tree.column])
        reduced = cost[tree.row] - found.row_potential[tree.row] - found.column_potential
        shorter = ~tree.settled & (length + reduced < tree.distance)
        distance = jnp.where(shorter, length + reduced, tree.distance)
        outside = jnp.where(tree.settled, jnp.inf, distance)
        # Among equally near columns, a free one ends the search.
        preference = (outside == outside.min()) * (1 + (found.row_of == NONE))
        column = jnp.argmax(preference).astype(jnp.int32)
        return Tree(
            row=found.row_of[column],
            column=column,
            distance=distance,
            previous=jnp.where(shorter, tree.row, tree.previous),
            settled=tree.settled.at[column].set(True),
            num_passes=tree.num_passes + 1,
        )

    start = Tree(
        row=jnp.int32(root),
        column=jnp.int32(NONE),
        distance=jnp.full(num_columns, jnp.inf),
        previous=jnp.full(num_columns, NONE),
        settled=jnp.zeros(num_columns, bool),
        num_passes=jnp.int32(0),
    )
    return jax.lax.while_loop(lambda tree: tree.row != NONE, read_row, start)


def _augment(found: Assignment, root: Array, tree: Tree) -> Assignment:
    """Moves the rows on the path that ends at `tree.column` to the next column of the path."""
    size = len(found.column_of)
    length = tree.distance[tree.column]
    slack = jnp.where(tree.settled, length - tree.distance, 0.0)
    settled_rows = jnp.where(tree.settled & (found.row_of != NONE), found.row_of, size)
    row_potential = found.row_potential.at[settled_rows].add(slack, mode='drop')

    last, is_root = tree.previous[tree.column], jnp.arange(size) == root
    parent = jnp.where(is_root, root, tree.previous[found.column_of])
    moved = jnp.where(_chain(parent, last) & ~is_root, parent, size)  # Beyond the last: dropped.
    column_of = found.column_of.at[moved].set(found.column_of, mode='drop')
    column_of = column_of.at[last].set(tree.column)
    columns = jnp.where(column_of == NONE, len(found.row_of), column_of)
    return Assignment(
        column_of=column_of,
        row_of=found.row_of.at[columns].set(jnp.arange(size, dtype=jnp.int32), mode='drop'),
        row_potential=row_potential.at[root].add(length),
        column_potential=found.column_potential - slack,
        num_passes=found.num_passes.at[root].set(tree.num_passes),
    )


def _chain(parent: Array, first: Array) -> Array:
    """Which rows [M] bool are `first` [] or above it, by doubling the step from row to row."""
    size = len(parent)
    reached = jnp.arange(size) == first
    for _ in range(size.bit_length()):
        reached = reached.at[parent].max(reached)
        parent = parent[parent]
    return reached
