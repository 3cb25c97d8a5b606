"""Devices, processes, compilation, object stores, files, signals, threads and progress output."""
