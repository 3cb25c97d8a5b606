"""The class-incremental sequence: which classes arrive in which stage (protocol A-B)."""

from __future__ import annotations

import dataclasses
import itertools
import re
from collections.abc import Sequence

import numpy as np

from simcis_jax.continual.class_orders import published_orders
from simcis_jax.errors import InputError


@dataclasses.dataclass(frozen=True)
class Stage:
    """One stage of the sequence; classes keep the labels they have in the data set."""

    index: int  # 0 is the base stage.
    past: tuple[int, ...]  # C^1..t-1
    current: tuple[int, ...]  # C^t

    @property
    def number(self) -> int:
        """The number shown to users, from 1; stage 1 is the base stage."""
        return self.index + 1

    @property
    def seen(self) -> tuple[int, ...]:
        """C^1..t, in the order they are learned."""
        return self.past + self.current

    def masks(self, num_classes: int) -> tuple[np.ndarray, np.ndarray]:
        """Past classes and current classes, each [C] bool."""
        labels = np.arange(num_classes)
        return np.isin(labels, self.past), np.isin(labels, self.current)


def class_order(order: str | Sequence[int], num_classes: int) -> tuple[int, ...]:
    """Resolves a class order.

    Args:
        order: 'origin', 'descending', the name of a published order (see `class_orders`), or the
            labels, also as text ('2,0,1').
        num_classes: C.

    Raises:
        InputError: the name is unknown, or the labels are not a permutation of 0..C-1.
    """
    named = {
        'origin': range(num_classes),
        'descending': range(num_classes - 1, -1, -1),
    } | published_orders()
    subject = repr(order) if isinstance(order, str) and order in named else 'it'
    if isinstance(order, str):
        if order not in named and not re.fullmatch(r'[\d, ()]+', order):
            raise InputError(
                f'protocol.order={order!r} is unknown; one of {sorted(named)}, or labels: 2,0,1.'
            )
        order = named.get(order) or [int(label) for label in re.findall(r'\d+', order)]
    order = tuple(order)
    if len(order) != num_classes or set(order) != set(range(num_classes)):
        wrong = sorted(set(order) ^ set(range(num_classes)), key=str)
        listed = f'{wrong[:5]}{" and others" if len(wrong) > 5 else ""}'
        raise InputError(
            f'protocol.order must be a permutation of the {num_classes} labels 0..'
            f'{num_classes - 1}; {subject} has {len(order)} entries; '
            f'missing or unknown labels: {listed if wrong else "none, but some are repeated"}.'
        )
    return tuple(int(label) for label in order)


def make_stages(
    num_classes: int,
    *,
    base: int,
    increment: int,
    added: Sequence[int] = (),
    order: str | Sequence[int] = 'origin',
) -> tuple[Stage, ...]:
    """The stages of protocol base-increment; base = C is joint training in one stage.

    Args:
        num_classes: C.
        base: number of classes of the first stage.
        increment: number of classes of every later stage.
        added: numbers of classes of further stages, which the protocol did not plan.
        order: of the classes; see `class_order`.

    Raises:
        InputError: the stages do not add up to C classes, or the order is not a permutation.
    """
    order = class_order(order, num_classes)
    planned = num_classes - sum(added)
    if any(size < 1 for size in added) or not 1 <= base <= planned:
        extra = f' and protocol.added={tuple(added)}' if added else ''
        raise InputError(
            f'protocol.base={base}{extra} must be between 1 and the {num_classes} classes of the '
            f'data set, individually and in total (base={num_classes} is joint training).'
        )
    rest = planned - base
    if rest and (increment < 1 or rest % increment):
        fitting = [i for i in range(1, rest + 1) if rest % i == 0]
        raise InputError(
            f'protocol {base}-{increment} does not fit {planned} classes: after {base} base '
            f'classes {rest} are left; protocol.increment must be one of {fitting}.'
        )
    sizes = [base, *[increment] * (rest // increment if rest else 0), *added]
    ends = list(itertools.accumulate(sizes))
    return tuple(
        Stage(index, order[: end - size], order[end - size : end])
        for index, (size, end) in enumerate(zip(sizes, ends, strict=True))
    )
