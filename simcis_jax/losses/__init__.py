"""Predictions and Targets -> named scalars. Pure functions."""
