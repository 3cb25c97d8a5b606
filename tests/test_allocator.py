"""A warm step gets no pages from the system."""

import os
import platform
import subprocess
import sys

import pytest

PROGRAM = """
import resource
import jax, jax.numpy as jnp
from simcis_jax.allocator import keep_freed_memory

keep_freed_memory()
x = jnp.ones((2000, 2000))
step = jax.jit(lambda x: jnp.sin(x @ x) @ x)
for _ in range(3):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    step(x).block_until_ready()
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""
PAGES = 2000 * 2000 * 4 // 4096  # Of one matrix.


def faults_of_a_warm_step(**environment):
    result = subprocess.run(
        [sys.executable, '-c', PROGRAM],
        env={**os.environ, 'JAX_PLATFORMS': 'cpu', **environment},
        capture_output=True,
        text=True,
        check=True,
    )
    return int(result.stdout)


@pytest.mark.skipif(platform.libc_ver()[0] != 'glibc', reason='only glibc is told anything')
def test_freed_memory_is_kept_unless_the_user_tunes_malloc():
    assert faults_of_a_warm_step() < PAGES / 10
    small = 'glibc.malloc.mmap_threshold=131072'
    assert faults_of_a_warm_step(GLIBC_TUNABLES=small) > PAGES / 2
