"""Weights from and to the published PyTorch code."""
