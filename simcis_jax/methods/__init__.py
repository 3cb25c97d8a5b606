"""Continual methods, one file per method; see `base.Method` for the hooks."""

from __future__ import annotations

import dataclasses
from typing import Any

from simcis_jax.errors import InputError
from simcis_jax.methods.base import Method
from simcis_jax.methods.pseudo_label import PseudoLabel
from simcis_jax.methods.simcis import SimCIS

METHODS: dict[str, type[Method]] = {
    'finetune': Method,
    'pseudo_label': PseudoLabel,
    'simcis': SimCIS,
}


def make_method(name: str, **settings: Any) -> Method:
    """The method with this name; settings that it does not have are ignored.

    Raises:
        InputError: no method has this name.
    """
    if name not in METHODS:
        raise InputError(f'method.name={name!r} is unknown; one of {sorted(METHODS)}.')
    fields = {field.name for field in dataclasses.fields(METHODS[name])}
    return METHODS[name](**{key: value for key, value in settings.items() if key in fields})
