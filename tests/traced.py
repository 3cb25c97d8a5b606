"""The equations of a traced function, such as its products, and where they come from."""

from pathlib import Path

import jax

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
