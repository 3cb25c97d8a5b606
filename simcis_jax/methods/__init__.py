"""Continual methods, one file per method; see `base.Method` for the hooks."""

from __future__ import annotations

from typing import Any

from simcis_jax.errors import InputError
from simcis_jax.methods.balconpas import BalConpas
from simcis_jax.methods.base import Method
from simcis_jax.methods.comformer import CoMFormer
from simcis_jax.methods.eclipse import ECLIPSE
from simcis_jax.methods.futcr import FuTCR
from simcis_jax.methods.mib import MiB
from simcis_jax.methods.plop import PLOP
from simcis_jax.methods.pseudo_label import PseudoLabel
from simcis_jax.methods.simcis import SimCIS

METHODS: dict[str, type[Method]] = {
    'finetune': Method,
    'pseudo_label': PseudoLabel,
    'simcis': SimCIS,
    'futcr': FuTCR,
    'mib': MiB,
    'plop': PLOP,
    'comformer': CoMFormer,
    'balconpas': BalConpas,
    'eclipse': ECLIPSE,
}
DEFAULT_METHOD = 'simcis'
NO_METHOD = 'finetune'  # For models that are not trained here.


def make_method(name: str, **settings: Any) -> Method:
    """The method with this name and these values of its fields.

    Raises:
        InputError: no method has this name.
    """
    if name not in METHODS:
        raise InputError(f'method.name={name!r} is unknown; one of {sorted(METHODS)}.')
    return METHODS[name](**settings)
