"""Loops in compiled programs whose length is known only at run time."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array


def for_each(chosen: Array, function: Callable[[Array, Any], Any], state: Any) -> Any:
    """`state = function(i, state)` for every i, ascending, where `chosen` [N] bool is set.

    What is not chosen costs nothing.
    """
    indices = jnp.flatnonzero(chosen, size=len(chosen), fill_value=0)
    return jax.lax.fori_loop(0, chosen.sum(), lambda k, state: function(indices[k], state), state)
