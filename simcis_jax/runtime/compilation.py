"""Compiled programs are reused, by later runs in the same process and by later processes."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax

from simcis_jax.runtime.cache import cache_folder

CACHE_SIZE = 10 << 30  # Bytes of compiled programs that are kept.


def enable_compilation_cache() -> None:
    """Enables JAX's compilation cache in the user's cache folder.

    JAX_COMPILATION_CACHE_DIR selects another folder, JAX_ENABLE_COMPILATION_CACHE=false disables
    the cache. Each host has its own folder, because home folders may be shared and a program
    compiled for one CPU may not run on another. Programs in it beyond `CACHE_SIZE` bytes are
    deleted, the least recently used first. JAX_COMPILATION_CACHE_MAX_SIZE leaves that to JAX.
    """
    if jax.config.jax_compilation_cache_dir is None:
        folder = cache_folder()
        jax.config.update('jax_compilation_cache_dir', str(folder))
        if jax.config.jax_compilation_cache_max_size == -1:
            delete_least_used(folder, CACHE_SIZE)


def delete_least_used(folder: Path, max_bytes: int) -> None:
    """Deletes programs from a compilation cache until at most `max_bytes` are left."""
    states = []
    for path in folder.glob('*-cache'):
        with contextlib.suppress(OSError):  # Another process may delete it, too.
            state = path.stat()
            states.append((max(state.st_atime, state.st_mtime), state.st_size, path))
    for _, size, path in sorted(states, reverse=True):
        max_bytes -= size
        if max_bytes < 0:
            with contextlib.suppress(OSError):
                path.unlink()


@functools.lru_cache(maxsize=16)
def shared(make: Callable, *arguments: Any, **options: Any) -> Any:
    """`make(*arguments, **options)`, which returns a compiled function; made once per process.

    So runs with the same settings, one after another, trace and compile their programs once.
    """
    return make(*arguments, **options)
