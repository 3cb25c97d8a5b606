"""Config keys: declared, in groups, checked, documented."""
