"""Errors of a training step on this device relative to the arrays of the published code.

The arrays and the code that computes them under their published names are those of the tests.
"""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np

TESTS = Path(__file__).parent.parent.parent / 'tests'
TOLERANCE = 1e-4  # Norm of the difference over norm.


def measure(case: str, precision: str, updates: bool) -> dict:
    """Compares a recorded step.

    Args:
        case: name of the recorded step.
        precision: of the pixel decoder, 'highest' or 'high'; all else is in full float32.
        updates: whether gradients and the update are compared too.

    Returns:
        Group of arrays -> number of arrays, how many are within the tolerance, and the worst.
    """
    jax.config.update('jax_default_matmul_precision', 'highest')  # Of the code of the tests.
    sys.path.insert(0, str(TESTS))
    import parity
    import published
    from recorded_steps import CASES, compute_step
    from recorded_updates import compute_update

    (chosen,) = [x for x in CASES if x.file == case]
    chosen = dataclasses.replace(chosen, pixel_decoder_precision=precision)
    step = compute_step(chosen)
    groups = {
        'forward': ('teacher/', *published.ACTIVATIONS),
        'costs and matches': ('cost/', 'assign/'),
        'losses': ('loss/raw/', 'loss/weighted/', 'loss/total'),
    }
    found = {name: compare(step, names, parity) for name, names in groups.items()}
    if updates:
        update = compute_update(chosen)
        found['gradient norms'] = compare(update, ('grad/norm/', 'grad/global_norm'), parity)
        found['gradient entries'] = compare(update, ('grad/slices/',), parity)
        found['update norms'] = compare(update, ('opt/update_norm/',), parity)
    return found


def compare(step: Any, beginnings: tuple[str, ...], parity: Any) -> dict:
    """The errors of the arrays of a step whose names have one of these beginnings."""
    golden = step.golden
    names = [x for x in golden if x.startswith(beginnings) and x in step.arrays]
    return summary(
        {
            name: (np.asarray(golden[name]), parity.thinned(step.arrays[name], golden, name))
            for name in names
        },
        parity.relative_error,
    )


def summary(pairs: Mapping[str, tuple[np.ndarray, np.ndarray]], relative_error: Any) -> dict:
    """Numbers of arrays and the worst of them.

    Args:
        pairs: name -> recorded array, computed array.
        relative_error: function of computed and recorded array.
    """
    floats, differing = {}, {}
    for name, (expected, actual) in pairs.items():
        if expected.dtype.kind == 'f':
            floats[name] = float(relative_error(actual, expected))
        else:
            differing[name] = float(np.mean(actual != expected))
    worst = max(floats, key=floats.get, default=None)
    return {
        'arrays': len(floats),
        'within': sum(error <= TOLERANCE for error in floats.values()),
        'worst': worst and [worst, floats[worst]],
        'median': float(np.median(list(floats.values()))) if floats else None,
        'integer_arrays': len(differing),
        'identical': sum(not share for share in differing.values()),
    }
