"""Benchmarks of speed and memory, compared with public code on the same machine."""
