"""The page about a run: what is read, what is computed from it, and how it is drawn."""
