"""Arithmetic of the products and convolutions in a traced function: what PyTorch's counter counts.

The compiler's own count takes the body of every loop once, and has nothing to compare with.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

from jax.interpreters import partial_eval


def count(jaxpr: Any) -> float:
    """Operations of a jaxpr, two for a multiplication and its addition.

    What no result needs, as the compiler drops it too, is left out. Of branches the dearest counts.
    A loop whose passes depend on the data counts as one pass.
    """
    needed, _ = partial_eval.dce_jaxpr(jaxpr, [True] * len(jaxpr.outvars))
    return _count(needed)


def _count(jaxpr: Any) -> float:
    return sum(_count_equation(equation) for equation in jaxpr.eqns)


def _count_equation(equation: Any) -> float:
    name, params = equation.primitive.name, equation.params
    if name == 'dot_general':
        (contracted, _), _ = params['dimension_numbers']
        left, out = equation.invars[0].aval.shape, equation.outvars[0].aval.shape
        return 2 * math.prod(out) * math.prod(left[i] for i in contracted)
    if name == 'conv_general_dilated':
        kernel, out = equation.invars[1].aval.shape, equation.outvars[0].aval.shape
        features = kernel[params['dimension_numbers'].rhs_spec[0]]
        # Zeros between the elements are no work.
        zeros = math.prod(params['lhs_dilation'])
        return 2 * math.prod(out) * math.prod(kernel) / features / zeros
    inner = [_count(jaxpr) for jaxpr in _inner(params.values())]
    if name == 'cond':
        return max(inner)
    return sum(inner) * (params['length'] if name == 'scan' else 1)


def _inner(values: Any) -> Iterator[Any]:
    for value in values:
        value = getattr(value, 'jaxpr', value)  # Without the constants of a closed one.
        if hasattr(value, 'eqns'):
            yield value
        elif isinstance(value, tuple | list):
            yield from _inner(value)
