"""Speed and memory, measured beside something public on the same machine."""
