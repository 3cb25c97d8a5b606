"""The cache folder, for files that can be computed or downloaded again."""

from __future__ import annotations

import os
import platform
from pathlib import Path


def cache_folder(*names: str) -> Path:
    """A folder of this host in the user's cache; home folders may be shared between hosts.

    Args:
        *names: names of the folders in which it lies, from `simcis_jax` on.
    """
    cache = Path(os.environ.get('XDG_CACHE_HOME') or Path.home() / '.cache')
    return cache.joinpath('simcis_jax', *names, platform.node() or 'local')
