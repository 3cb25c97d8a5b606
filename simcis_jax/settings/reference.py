"""Generates the configuration reference: Markdown tables of all settings.

python -m simcis_jax.settings.reference
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Mapping

from simcis_jax.settings.declare import Setting, declared
from simcis_jax.settings.keys import GROUPS


def markdown() -> str:
    """The reference, with one section per config group."""
    return '\n'.join(_lines())


def _lines() -> Iterator[str]:
    for group, owners in GROUPS.items():
        yield f'## {group}\n'
        for owner in owners:
            yield f'{inspect.cleandoc(owner.__doc__)}\n'
            yield from _table(group, declared(owner))
            yield ''


def _table(group: str, settings: Mapping[str, Setting]) -> Iterator[str]:
    yield '| key | default | must be | meaning |'
    yield '|---|---|---|---|'
    for key, setting in settings.items():
        cells = f'`{group}.{key}`', f'`{setting.default!r}`', setting.requirement(), setting.meaning
        yield f'| {" | ".join(cells)} |'


if __name__ == '__main__':
    print(markdown())
