"""The stage loop, the train step, its data, and its state on disk."""
