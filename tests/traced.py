"""What a traced function does: its equations, such as products, where they come from, lookups."""

import math
from pathlib import Path

import jax
from jaxlib.mlir import ir

import simcis_jax

PACKAGE = Path(simcis_jax.__file__).parent


def equations(jaxpr, *primitives):
    """The equations of these primitives in a jaxpr and in those that it calls."""
    for equation in jaxpr.eqns:
        if equation.primitive.name in primitives:
            yield equation
        is_jaxpr = lambda x: hasattr(x, 'eqns')  # noqa: E731
        for value in jax.tree.leaves(list(equation.params.values()), is_leaf=is_jaxpr):
            if is_jaxpr(value):
                yield from equations(value, *primitives)


def lookup_sizes(function, arguments, platform):
    """The number of indices of every gather and scatter in a function lowered for a platform."""
    lowered = jax.jit(function).trace(*arguments).lower(lowering_platforms=(platform,))
    sizes = []

    def visit(operation):
        if operation.name in ('stablehlo.gather', 'stablehlo.scatter'):
            indices = operation.operands[len(operation.operands) // 2]
            sizes.append(math.prod(indices.type.shape[:-1]))
        return ir.WalkResult.ADVANCE

    lowered.compiler_ir('stablehlo').operation.walk(visit)
    return sizes


def products(jaxpr):
    """The equations of all products."""
    return equations(jaxpr, 'dot_general', 'conv_general_dilated')


def lines(equation):
    """The lines of the package that led to an equation, innermost first."""
    frames = equation.source_info.traceback.frames
    return [
        f'{Path(f.file_name).name}:{f.line_num}'
        for f in frames
        if Path(f.file_name).is_relative_to(PACKAGE)
    ]
