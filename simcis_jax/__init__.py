"""SimCIS and continual image segmentation in JAX."""
