"""Functions with one implementation per platform, all with the same result."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax

from simcis_jax.model.saved_for_backward import computed_again


def by_platform(*, default: Callable, **others: Callable) -> Callable:
    """A function that is one of several, chosen for the platform that it is compiled for.

    The choice is made when a program is lowered, not when it is traced, so that a program that was
    traced on one platform can be compiled for another. The backward pass starts from the arguments
    and computes everything else again, so that nothing else is kept for it.

    Args:
        default: for platforms that are not named.
        **others: platform ('cpu', 'cuda', 'rocm', 'tpu') -> function. All functions take the same
            arrays; where gradients are needed, of floating-point numbers only.
    """

    @jax.custom_vjp
    def chosen(*arguments: Any) -> Any:
        return jax.lax.platform_dependent(*arguments, default=default, **others)

    def forward(*arguments):
        return chosen(*arguments), arguments

    def backward(arguments, gradient):
        arguments, gradient = computed_again((arguments, gradient))

        def pull_back(function):
            return lambda arguments, gradient: jax.vjp(function, *arguments)[1](gradient)

        return jax.lax.platform_dependent(
            arguments,
            gradient,
            default=pull_back(default),
            **{platform: pull_back(function) for platform, function in others.items()},
        )

    chosen.defvjp(forward, backward)
    return chosen
