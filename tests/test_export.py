"""`simcis_jax.export`, on one tiny model with random weights."""

import json
import subprocess
import sys

import jax
import numpy as np
import pytest
from random_run import random_run
from xla_flags import FAST_COMPILATION

from simcis_jax import export, predict
from simcis_jax.data import Shapes
from simcis_jax.data.category_list import read_categories
from simcis_jax.prediction import exported_model

# What docs/export.md shows, in a process that cannot import the package.
CALL = """
import importlib.util, sys
import jax, numpy

assert importlib.util.find_spec('simcis_jax') is None
with open(sys.argv[1], 'rb') as file:
    model = jax.export.deserialize(bytearray(file.read()))
with numpy.load(sys.argv[2]) as arrays:
    result = jax.jit(model.call)(arrays['image'], arrays['size'])
numpy.savez(sys.argv[3], **result)
assert 'flax' not in sys.modules
"""


@pytest.fixture(scope='module')
def run(tmp_path_factory):
    """The work directory of a run whose stage 2 has random weights."""
    return random_run(tmp_path_factory.mktemp('runs') / 'random')[0]


@pytest.fixture(scope='module')
def exported(run, tmp_path_factory):
    """A file for three platforms, and what the command printed."""
    out = tmp_path_factory.mktemp('exported') / 'new' / 'model.stablehlo'
    model = export.load_model(run / 'stage_2')
    printed = export.export_model(model, out, height=64, width=96, batch_size=2)
    return out, printed
