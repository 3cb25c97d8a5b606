"""Inference with a finished stage, on arrays or on image files."""
