"""Commands that reproduce tables."""
