"""What a forward pass keeps for the backward pass, where XLA would choose badly.

Both functions are barriers: they compute nothing, and XLA moves no operation across them.
"""

from __future__ import annotations

from typing import Any

import jax


def kept(results: Any) -> Any:
    """Results that the backward pass reads.

    XLA likes to compute cheap results again, and keeps what they are computed from instead, even if
    that is larger or the results are kept anyway.
    """
    return jax.lax.optimization_barrier(results)


def computed_again(inputs: Any) -> Any:
    """Inputs from which the backward pass computes intermediate results again.

    XLA finds the same operations in the forward pass, and would keep their results.
    """
    return jax.lax.optimization_barrier(inputs)
