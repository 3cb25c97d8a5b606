"""What a forward pass keeps for the backward pass, and until when, where XLA would choose badly.

Barriers compute nothing, and XLA moves no operation across them.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
from jax.ad_checkpoint import checkpoint_name

MARK = 'kept'
# A policy of `nn.remat`: the backward pass keeps what is marked, and computes the rest again.
MARKED_ONLY = jax.checkpoint_policies.save_only_these_names(MARK)


def marked(results: Any) -> Any:
    """Results that are kept where the policy is `MARKED_ONLY`."""
    return jax.tree.map(lambda x: checkpoint_name(x, MARK), results)


def kept(results: Any) -> Any:
    """Results that the backward pass reads, marked.

    XLA likes to compute cheap results again, and keeps what they are computed from instead, even if
    that is larger or the results are kept anyway.
    """
    return marked(jax.lax.optimization_barrier(results))


def computed_again(inputs: Any) -> Any:
    """Inputs from which the backward pass computes intermediate results again.

    XLA finds the same operations in the forward pass, and would keep their results.
    """
    return jax.lax.optimization_barrier(inputs)


def backward_at_once(function: Callable) -> Callable:
    """`function(module, *inputs)`; its backward pass is done before that of its inputs begins.

    XLA may put off the gradients of parameters, and keeps what they are computed from until then.
    All parameters of the module count, also those that the function does not read.
    """

    def forward(module: nn.Module, *inputs: Any) -> Any:
        return nn.vjp(function, module, *inputs)

    def backward(pull_back: Callable, gradient: Any) -> Any:
        return jax.lax.optimization_barrier(pull_back(gradient))

    return nn.custom_vjp(function, forward, backward)
