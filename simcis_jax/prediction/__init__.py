"""A finished stage as a function of images, and the folder it writes its results to."""
