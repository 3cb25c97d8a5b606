"""Persistent compilation cache: the same command starts within seconds the next time."""

from __future__ import annotations

import os
import platform
from pathlib import Path

import jax


def enable_compilation_cache() -> None:
    """Enables JAX's compilation cache in the user's cache folder.

    JAX_COMPILATION_CACHE_DIR selects another folder, JAX_ENABLE_COMPILATION_CACHE=false disables
    the cache. Each host has its own folder, because home folders may be shared and a program
    compiled for one CPU may not run on another.
    """
    if jax.config.jax_compilation_cache_dir is None:
        cache = Path(os.environ.get('XDG_CACHE_HOME') or Path.home() / '.cache')
        folder = cache / 'simcis_jax' / (platform.node() or 'local')
        jax.config.update('jax_compilation_cache_dir', str(folder))
