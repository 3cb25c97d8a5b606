"""What has been compiled is used again, by later runs of a process and by later processes."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import jax

from simcis_jax.runtime.cache import cache_folder


def enable_compilation_cache() -> None:
    """Enables JAX's compilation cache in the user's cache folder.

    JAX_COMPILATION_CACHE_DIR selects another folder, JAX_ENABLE_COMPILATION_CACHE=false disables
    the cache. Each host has its own folder, because home folders may be shared and a program
    compiled for one CPU may not run on another.
    """
    if jax.config.jax_compilation_cache_dir is None:
        jax.config.update('jax_compilation_cache_dir', str(cache_folder()))


@functools.lru_cache(maxsize=16)
def shared(make: Callable, *arguments: Any, **options: Any) -> Any:
    """`make(*arguments, **options)`, which returns a compiled function; made once per process.

    So runs with the same settings, one after another, trace and compile their programs once.
    """
    return make(*arguments, **options)
