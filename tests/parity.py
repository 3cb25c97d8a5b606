"""Comparisons with the arrays of the published code, and the table of how well they agree."""

from collections import defaultdict

import numpy as np

ERRORS = defaultdict(dict)  # File -> array -> relative error; 0 where the two must be identical.


def relative_error(actual, expected):
    """Norm of the difference over norm; infinite entries must be infinite in both."""
    actual, expected = np.asarray(actual, np.float64), np.asarray(expected, np.float64)
    if not np.array_equal(np.isinf(actual), np.isinf(expected)):
        return np.inf
    finite = np.isfinite(expected)
    difference = np.linalg.norm((actual - expected)[finite])
    return difference / max(np.linalg.norm(expected[finite]), 1e-30) if difference else 0.0


def thinned(array, golden, name):
    """The entries of a whole array that a file holds under this name."""
    stride = golden.get(f'{name}.stride', [1] * np.ndim(array))
    return np.asarray(array)[tuple(slice(None, None, s) for s in stride)]


def names(golden, *beginnings):
    """Names of the arrays of a file that begin like this."""
    found = [x for x in golden if x.startswith(beginnings) and not x.endswith('.stride')]
    assert found, beginnings
    return found


def compare(file, golden, arrays, compared, tolerance):
    """Asserts that whole arrays are the published ones: numbers nearly, decisions exactly.

    Args:
        file: name of the golden file, for the table.
        golden: its arrays.
        arrays: published name -> our whole array.
        compared: names to compare.
        tolerance: largest relative error of floats; everything else must be identical.
    """
    errors = {}
    for name in compared:
        expected, actual = golden[name], thinned(arrays[name], golden, name)
        assert actual.shape == expected.shape, (name, actual.shape, expected.shape)
        if expected.dtype.kind == 'f':
            errors[name] = relative_error(actual, expected)
        else:
            np.testing.assert_array_equal(actual, expected, err_msg=name)
            errors[name] = 0.0
    ERRORS[file].update(errors)
    wrong = {name: error for name, error in errors.items() if not error <= tolerance}
    assert not wrong, wrong


def table():
    """A line a file: how many arrays were compared, and the worst of them."""
    lines = [f'{"file":24}{"arrays":>8}{"worst error":>14}  of']
    for file, errors in sorted(ERRORS.items()):
        worst = max(errors, key=errors.get)
        lines.append(f'{file:24}{len(errors):8}{errors[worst]:14.1e}  {worst}')
    return lines
