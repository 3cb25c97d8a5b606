"""SimCIS and continual image segmentation in JAX."""

__version__ = '0.1.0'
