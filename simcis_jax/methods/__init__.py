"""Continual methods: one file a method, each a small value with hooks that default to nothing."""

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
    """The method of that name; settings that only other methods have are left out.

    Raises:
        InputError: no method has this name.
    """
    if name not in METHODS:
        raise InputError(f'method.name={name!r} is unknown; one of {sorted(METHODS)}.')
    fields = {field.name for field in dataclasses.fields(METHODS[name])}
    return METHODS[name](**{key: value for key, value in settings.items() if key in fields})
