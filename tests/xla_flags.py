"""Flags of XLA for tests, which compile for longer than they run what was compiled."""

from importlib.metadata import version

FAST_COMPILATION = '--xla_backend_optimization_level=0 --xla_llvm_disable_expensive_passes=true'
if version('jaxlib').startswith('0.10.'):  # Later ones refuse the flag.
    FAST_COMPILATION += ' --xla_cpu_use_fusion_emitters=false'  # Halves the time of compiling.
