"""Devices, compilation, memory, signals, threads and progress: what any program of ours needs."""
