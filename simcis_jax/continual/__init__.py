"""What a stage is, and what outlives it."""
