"""Compiled programs are kept on disk: the same command starts in seconds the next time."""

from __future__ import annotations

import os
import platform
from pathlib import Path

import jax


def enable_compilation_cache() -> None:
    """Keeps them in the user's cache folder, unless JAX_COMPILATION_CACHE_DIR names another.

    JAX_ENABLE_COMPILATION_CACHE=false turns it off. Every machine has a folder of its own, because
    homes are shared and a program for one kind of CPU may not run on another.
    """
    if jax.config.jax_compilation_cache_dir is None:
        cache = Path(os.environ.get('XDG_CACHE_HOME') or Path.home() / '.cache')
        folder = cache / 'simcis_jax' / (platform.node() or 'local')
        jax.config.update('jax_compilation_cache_dir', str(folder))
