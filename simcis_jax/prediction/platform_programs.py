"""Joins the programs of several platforms into one."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import jax
from jax.core import ShapedArray
from jax.extend.core import Primitive
from jax.interpreters import mlir

PLATFORMS = ('cpu', 'cuda', 'rocm', 'tpu')


def join_platforms(programs: Mapping[str, jax.export.Exported]) -> Callable:
    """A function that can be exported for several platforms and runs the program of one.

    `jax.lax.platform_dependent` lowers all its functions for all platforms, and a Pallas kernel of
    a TPU is an error on others. Here, each program is lowered for its platform alone.

    Args:
        programs: platform, of `PLATFORMS` -> the program. All have the same arguments and results.
    """
    first = next(iter(programs.values()))

    def call(*arguments: Any) -> Any:
        results = _joined.bind(*jax.tree.leaves(arguments), programs=tuple(programs.items()))
        return jax.tree.unflatten(first.out_tree, results)

    return call


_joined = Primitive('joined_platforms')
_joined.multiple_results = True


@_joined.def_abstract_eval
def _shapes(*_, programs):
    return [ShapedArray(x.shape, x.dtype) for x in programs[0][1].out_avals]


def _lowering(platform: str) -> Callable:
    def run(*leaves, programs):
        program = dict(programs)[platform]
        arguments, keywords = jax.tree.unflatten(program.in_tree, leaves)
        return jax.tree.leaves(program.call(*arguments, **keywords))

    return mlir.lower_fun(run, multiple_results=True)


for _platform in PLATFORMS:
    mlir.register_lowering(_joined, _lowering(_platform), platform=_platform)
