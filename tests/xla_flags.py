"""Flags of XLA for tests, which compile for longer than they run what was compiled."""

from jaxlib import version

_flags = ['--xla_backend_optimization_level=0', '--xla_llvm_disable_expensive_passes=true']
if version.__version_info__ < (0, 11):
    _flags.append('--xla_cpu_use_fusion_emitters=false')  # Later versions do not know it.
FAST_COMPILATION = ' '.join(_flags)
