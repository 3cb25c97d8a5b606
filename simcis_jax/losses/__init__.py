"""Matching and losses: pure functions of Predictions and Targets."""
