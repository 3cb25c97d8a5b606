"""Comparison with arrays of the published code, and a table of the errors."""

from collections import defaultdict

import numpy as np

# (file, kind) -> name -> error. The error is relative for VALUES and GRADIENTS, 0 for IDENTICAL,
# and a fraction of the tolerance for NOISE, the entries of gradients and updates.
ERRORS = defaultdict(dict)
VALUES, GRADIENTS, IDENTICAL, NOISE = 'values', 'gradient norms', 'identical', 'entries'


def relative_error(actual, expected):
    """Norm of the difference over norm; infinite entries must be infinite in both."""
    actual, expected = np.asarray(actual, np.float64), np.asarray(expected, np.float64)
    if not np.array_equal(np.isinf(actual), np.isinf(expected)):
        return np.inf
    finite = np.isfinite(expected)
    difference = np.linalg.norm((actual - expected)[finite])
    return difference / max(np.linalg.norm(expected[finite]), 1e-30) if difference else 0.0


def thinned(array, golden, name):
    """The entries of a full array that the golden file stores under this name."""
    stride = golden.get(f'{name}.stride', [1] * np.ndim(array))
    return np.asarray(array)[tuple(slice(None, None, s) for s in stride)]


def names(golden, *beginnings):
    """Names of the arrays of a golden file with one of these prefixes."""
    found = [
        x for x in golden if x.startswith(beginnings) and not x.endswith(('.stride', '.noise'))
    ]
    assert found, beginnings
    return found


def compare(file, golden, arrays, compared, tolerance, kind=VALUES):
    """Asserts that arrays equal the published ones: floats to a tolerance, all others exactly.

    Args:
        file: name of the golden file, for the table.
        golden: its arrays.
        arrays: published name -> our full array.
        compared: names to compare.
        tolerance: largest relative error of floats; everything else must be identical.
        kind: row of the table for the floats.
    """
    errors = {}
    for name in compared:
        expected, actual = golden[name], thinned(arrays[name], golden, name)
        assert actual.shape == expected.shape, (name, actual.shape, expected.shape)
        if expected.dtype.kind == 'f':
            errors[name] = relative_error(actual, expected)
        else:
            np.testing.assert_array_equal(actual, expected, err_msg=name)
            ERRORS[file, IDENTICAL][name] = 0.0
    _record(file, kind, errors, tolerance)


def compare_entries(file, golden, arrays, compared):
    """Asserts that the error of each entry is at most twice `.noise`, or 1e-3 of the largest entry.

    `.noise` is the largest difference between the recorded run and the same run in float64. Errors
    are recorded as fractions of the tolerance.
    """
    errors = {}
    for name in compared:
        noise = golden['/'.join(name.split('/')[:2]) + '.noise']
        allowed = max(2 * noise, 1e-3 * np.abs(golden[name]).max())
        errors[name] = np.abs(np.float64(arrays[name]) - golden[name]).max() / allowed
    _record(file, NOISE, errors, 1.0)


def _record(file, kind, errors, limit):
    ERRORS[file, kind].update(errors)
    wrong = {name: error for name, error in errors.items() if not error <= limit}
    assert not wrong, wrong


def recorded():
    """All errors as rows (file, kind, name, error), a form that workers can send."""
    return [(*key, name, float(e)) for key, errors in ERRORS.items() for name, e in errors.items()]


def add(rows):
    """Adds rows that another process recorded."""
    for file, kind, name, error in rows:
        ERRORS[file, kind][name] = error


def table():
    """One line per file and kind: the number of compared arrays, and the largest error."""
    lines = [f'{"file":20} {"kind":15}{"arrays":>7}  worst']
    for (file, kind), errors in sorted(ERRORS.items()):
        worst = max(errors, key=errors.get, default=None)
        if worst is not None:
            error = '' if kind == IDENTICAL else f'  {errors[worst]:.1e} {worst}'
            lines.append(f'{file:20} {kind:15}{len(errors):7}{error}')
    return lines
