"""Four ways to sample maps at the points of deformable attention, all with the same result."""
