"""Parts of `benchmarks.accelerator_check`."""
