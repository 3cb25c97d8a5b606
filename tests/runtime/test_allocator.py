"""A warm step requests no pages from the system."""

import os
import platform
import subprocess
import sys

import pytest

PROGRAM = """
import resource
import jax, jax.numpy as jnp
from simcis_jax.runtime.allocator import configure_malloc

configure_malloc()
x = jnp.ones((2000, 2000))
thin = x[:, :8]
step = jax.jit(lambda x, thin: jnp.sin(thin @ thin.T) + x)  # The temporaries are matrices too.

def faults_of(steps):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(steps):
        step(x, thin).block_until_ready()
    return (resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before) / steps

faults_of(100)  # The heap settles within this number of steps.
print(faults_of(50))
"""
PAGES = 2000 * 2000 * 4 // 4096  # Pages of one matrix.


def faults_of_a_warm_step(**environment):
    result = subprocess.run(
        [sys.executable, '-c', PROGRAM],
        env={**os.environ, 'JAX_PLATFORMS': 'cpu', **environment},
        capture_output=True,
        text=True,
        check=True,
    )
    return float(result.stdout)


@pytest.mark.skipif(platform.libc_ver()[0] != 'glibc', reason='only glibc is configured')
@pytest.mark.slow
def test_freed_memory_is_kept_unless_the_user_tunes_malloc():
    assert faults_of_a_warm_step() < PAGES / 10
    small = 'glibc.malloc.mmap_threshold=131072'
    assert faults_of_a_warm_step(GLIBC_TUNABLES=small) > PAGES / 2
