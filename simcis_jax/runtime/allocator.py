"""On CPU, memory that a step has freed is kept for the next one."""

from __future__ import annotations

import ctypes
import os

import jax

# Of glibc's malloc.h.
M_TRIM_THRESHOLD, M_MMAP_MAX, M_ARENA_MAX = -1, -4, -8


def configure_malloc() -> None:
    """Tells the C library to keep it; for commands, before JAX starts its threads.

    XLA allocates all that a compiled step needs in one piece, and glibc would get that from the
    system anew for every step, which has to clear each page of it: a quarter of the time of a train
    step at 640 pixels. It takes some steps until every piece has its place; the process then stays
    as large as it has ever been. Other C libraries, and GLIBC_TUNABLES that say something of
    malloc, are left alone; accelerators have allocators of their own.
    """
    mallopt = getattr(ctypes.CDLL(None), 'mallopt', None) if os.name == 'posix' else None
    if mallopt is None or 'glibc.malloc' in os.environ.get('GLIBC_TUNABLES', ''):
        return
    # Only the first arena can keep large pieces, and it must be the one of the threads that XLA
    # starts together with the backend.
    mallopt(M_ARENA_MAX, 1)
    if jax.default_backend() == 'cpu':
        mallopt(M_MMAP_MAX, 0)
        mallopt(M_TRIM_THRESHOLD, -1)
