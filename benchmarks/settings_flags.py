"""Command-line flags for the problem size."""

from __future__ import annotations

import dataclasses

from absl import flags

from benchmarks.row import Settings

NAMES = [field.name for field in dataclasses.fields(Settings)]
for field in dataclasses.fields(Settings):
    define = flags.DEFINE_string if isinstance(field.default, str) else flags.DEFINE_integer
    define(field.name, field.default, f'See {Settings.__name__} in row.py.')


def settings() -> Settings:
    """The settings given on the command line."""
    return Settings(**{name: flags.FLAGS[name].value for name in NAMES})
