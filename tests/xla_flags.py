"""Flags of XLA for tests, which compile for longer than they run what was compiled."""

FAST_COMPILATION = '--xla_backend_optimization_level=0 --xla_llvm_disable_expensive_passes=true'
