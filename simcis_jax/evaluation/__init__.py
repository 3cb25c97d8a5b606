"""Post-processing, metrics, result tables and pictures."""
