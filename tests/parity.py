"""Comparisons with the arrays of the published code, and the table of how well they agree."""

from collections import defaultdict

import numpy as np

# (file, kind) -> name -> error: relative, 0 for what is identical, a share of what is allowed
# for entries of gradients and updates.
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
    """The entries of a whole array that a file holds under this name."""
    stride = golden.get(f'{name}.stride', [1] * np.ndim(array))
    return np.asarray(array)[tuple(slice(None, None, s) for s in stride)]


def names(golden, *beginnings):
    """Names of the arrays of a file that begin like this."""
    found = [
        x for x in golden if x.startswith(beginnings) and not x.endswith(('.stride', '.noise'))
    ]
    assert found, beginnings
    return found


def compare(file, golden, arrays, compared, tolerance, kind=VALUES):
    """Asserts that whole arrays are the published ones: numbers nearly, decisions exactly.

    Args:
        file: name of the golden file, for the table.
        golden: its arrays.
        arrays: published name -> our whole array.
        compared: names to compare.
        tolerance: largest relative error of floats; everything else must be identical.
        kind: the row of the table that the floats count in.
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
    """Asserts that no entry is further off than two float32 runs may be, or than a thousandth.

    `.noise` is the largest difference of the recorded run to the same run in float64, the
    thousandth is of the largest entry. Errors are shares of what is allowed.
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
    """All errors as rows (file, kind, name, error): what one process can send to another."""
    return [(*key, name, float(e)) for key, errors in ERRORS.items() for name, e in errors.items()]


def add(rows):
    """Takes over what another process recorded."""
    for file, kind, name, error in rows:
        ERRORS[file, kind][name] = error


def table():
    """A line a file and kind: how many arrays were compared, and the worst of them."""
    lines = [f'{"file":20} {"kind":15}{"arrays":>7}  worst']
    for (file, kind), errors in sorted(ERRORS.items()):
        worst = max(errors, key=errors.get, default=None)
        if worst is not None:
            error = '' if kind == IDENTICAL else f'  {errors[worst]:.1e} {worst}'
            lines.append(f'{file:20} {kind:15}{len(errors):7}{error}')
    return lines
