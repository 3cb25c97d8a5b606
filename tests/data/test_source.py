"""Tests of `simcis_jax.data.source`."""

import numpy as np

from simcis_jax.data import source


class ClassesOnly:
    """A source that has only classes, and whose images must not be read."""

    name = 'classes_only'

    def __init__(self, *classes):
        self._classes = classes

    def __len__(self):
        return len(self._classes)

    def classes_of(self, index):
        return frozenset(self._classes[index])


def test_images_with_returns_images_with_any_of_the_classes():
    images = ClassesOnly({0, 1}, {2}, {1, 2}, {3}, set())
    np.testing.assert_array_equal(source.images_with(images, [1, 3]), [0, 2, 3])


def test_images_with_returns_nothing_for_an_absent_class():
    indices = source.images_with(ClassesOnly({0}, {1}), [7])
    assert indices.shape == (0,)
