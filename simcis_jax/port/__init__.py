"""Conversion of weights from and to the published PyTorch code."""
