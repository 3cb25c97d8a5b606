"""The class orders that papers publish; each row of class_orders.tsv is one, by its name.

`ade20k_1` to `ade20k_10` are those of SimCIS (supplementary, table 10), `ade20k_b` to `ade20k_j`
and `coco_c` those in the configs of ECLIPSE. Labels are positions in the list of classes.
"""

from __future__ import annotations

import functools
import importlib.resources


@functools.cache
def published_orders() -> dict[str, tuple[int, ...]]:
    """Name -> the labels in the order they are learned."""
    table = importlib.resources.files('simcis_jax.continual').joinpath('class_orders.tsv')
    rows = (line.split('\t') for line in table.read_text('utf-8').splitlines()[1:])
    return {name: tuple(map(int, labels.split())) for name, labels in rows}
