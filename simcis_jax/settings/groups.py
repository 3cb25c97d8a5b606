"""Config keys in nested groups, such as `method.simcis.csl_weight` in the group `method.simcis`."""

from __future__ import annotations

import difflib
from collections.abc import Collection, Iterator, Mapping
from typing import Any


def group_of(config: Mapping[str, Any], group: str) -> Mapping[str, Any]:
    """The values of a group; empty if the config lacks it, or has something else there."""
    for name in group.split('.'):
        config = config.get(name)
        if not isinstance(config, Mapping):
            return {}
    return config


def flat(config: Mapping[str, Any], groups: Collection[str] | None = None) -> dict[str, Any]:
    """The values of a config by 'group.key'.

    Args:
        config: a config.
        groups: the known groups, other mappings are values; None = all mappings are groups.
    """
    found = {}

    def add(values: Mapping[str, Any], prefix: str) -> None:
        for name, value in values.items():
            key = f'{prefix}{name}'
            is_group = groups is None or key in groups
            if is_group and isinstance(value, Mapping):
                add(value, f'{key}.')
            else:
                found[key] = value

    add(config, '')
    return found


def nested(values: Mapping[str, Any]) -> dict[str, Any]:
    """The config with these values by 'group.key'."""
    config = {}
    for key, value in values.items():
        *groups, name = key.split('.')
        target = config
        for group in groups:
            target = target.setdefault(group, {})
        target[name] = value
    return config


def unknown_keys(
    config: Mapping[str, Any], known: Collection[str], groups: Collection[str]
) -> Iterator[str]:
    """One line per key, or group, that is not known, with the nearest known key."""
    for key in flat(config, groups):
        if key not in known:
            near = difflib.get_close_matches(key, known, n=1, cutoff=0.4)
            hint = f'did you mean {near[0]!r}?' if near else f'known groups: {", ".join(groups)}'
            yield f'config key {key!r} is unknown; {hint}'
