"""Fixtures shared by the tests of the experiments."""

import dataclasses

import pytest
from tiny import tiny_config

from experiments.sweep import Variant, make_run


@pytest.fixture(scope='session')
def run(finished):
    """The finished tiny run, as a run of a sweep."""
    made = make_run('tiny', tiny_config(), Variant('SimCIS'), 0, 12, finished[0].parent)
    return dataclasses.replace(made, folder=finished[0])
