"""Floating-point operations of the matrix products and convolutions in a traced function.

PyTorch's FlopCounterMode counts the same operations, so the numbers are comparable. XLA's own cost
analysis counts the body of every loop only once.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

from jax.interpreters import partial_eval


def count(jaxpr: Any) -> float:
    """Floating-point operations of a jaxpr; a multiply-add counts as two.

    Dead code is not counted. A `cond` counts as its most expensive branch, a `while` loop as one
    iteration.
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
        # Zeros inserted by dilation cost nothing.
        zeros = math.prod(params['lhs_dilation'])
        return 2 * math.prod(out) * math.prod(kernel) / features / zeros
    inner = [_count(jaxpr) for jaxpr in _inner(params.values())]
    if name == 'cond':
        return max(inner)
    return sum(inner) * (params['length'] if name == 'scan' else 1)


def _inner(values: Any) -> Iterator[Any]:
    for value in values:
        value = getattr(value, 'jaxpr', value)  # Unwraps a ClosedJaxpr.
        if hasattr(value, 'eqns'):
            yield value
        elif isinstance(value, tuple | list):
            yield from _inner(value)
