"""Devices, compilation cache, memory allocator, signals, threads and progress output."""
