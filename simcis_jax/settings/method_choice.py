"""Which method a config chooses, and whose keys it may therefore set.

The keys of a method are a group of its own, which only that method reads. A config file may set
those of several methods, so that any of them can be chosen; a run has those of its method only.
"""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from simcis_jax.errors import InputError
from simcis_jax.methods import DEFAULT_METHOD, METHODS
from simcis_jax.settings.declare import declare, declared
from simcis_jax.settings.groups import flat, group_of, nested


@dataclasses.dataclass(frozen=True)
class MethodChoice:
    """The continual method. The keys of method NAME are the group `method.NAME`."""

    name: str = declare(DEFAULT_METHOD, 'Continual method.', choices=tuple(METHODS))


METHOD_GROUPS: dict[str, tuple[type, ...]] = {
    'method': (MethodChoice,),
    **{f'method.{name}': (method,) for name, method in METHODS.items() if declared(method)},
}


def resolve(config: Mapping[str, Any], changed: Iterable[str] = ()) -> dict[str, Any]:
    """The config of a run: that of a config file without the groups of methods not chosen.

    Args:
        config: as a config file makes it, with changes.
        changed: the keys of the changes, which must have an effect.

    Raises:
        InputError: a changed key is that of a method that is not chosen.
    """
    name = group_of(config, 'method').get('name', DEFAULT_METHOD)
    values = flat(config, METHOD_GROUPS)
    wrong = list(keys_of_others(changed, name))
    if wrong:
        raise InputError('\n'.join(not_chosen(key, name) for key in wrong))
    others = set(keys_of_others(values, name))
    return copy.deepcopy(nested({key: x for key, x in values.items() if key not in others}))


def as_dict(config: Any) -> dict[str, Any]:
    """The config of a run from the ConfigDict of a config file, or from nested dicts.

    Raises:
        InputError: nested dicts change keys of a method that is not chosen.
    """
    return resolve(config.to_dict() if hasattr(config, 'to_dict') else config)


def keys_of_others(keys: Iterable[str], name: str) -> Iterator[str]:
    """Those of the keys 'group.key' that belong to other methods than `name`."""
    for key in keys:
        group = key.rpartition('.')[0]
        if group.startswith('method.') and group != f'method.{name}':
            yield key


def not_chosen(key: str, name: str) -> str:
    """The error message for a key of another method than `name`."""
    return (
        f'{key} belongs to another method than method.name={name!r}, which does not read it; leave '
        f'it out, or set method.name={key.split(".")[1]!r}.'
    )
