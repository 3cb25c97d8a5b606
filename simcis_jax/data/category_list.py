"""Lists of categories in the COCO format: id, name, thing flag and colour."""

from __future__ import annotations

import colorsys
import os
from collections.abc import Mapping, Sequence
from typing import Any

from simcis_jax import types
from simcis_jax.errors import InputError
from simcis_jax.runtime.json_files import read_json


def field(entry: Any, name: str, kind: type | tuple[type, ...], where: str) -> Any:
    """Returns a field of a JSON object; raises an InputError that says where a wrong one is."""
    value = entry.get(name) if isinstance(entry, Mapping) else None
    if not isinstance(value, kind) or isinstance(value, bool):
        kinds = kind if isinstance(kind, tuple) else (kind,)
        wanted = ' or '.join(kind.__name__ for kind in kinds)
        raise InputError(
            f'{where}: field {name!r} is {value!r}, but a COCO panoptic file needs {wanted} there.'
        )
    return value


def flag(entry: Mapping[str, Any], name: str, where: str, *, default: int | None = None) -> bool:
    """Returns a field that is 0, 1, false or true as a bool; raises InputError if it is not."""
    value = entry.get(name, default)
    if not isinstance(value, int) or value not in (0, 1):
        raise InputError(f'{where}: field {name!r} is {value!r}; it must be 0 or 1.')
    return bool(value)


def parse_categories(entries: Sequence[Mapping[str, Any]], where: str) -> types.Categories:
    """Converts category entries of a JSON file to `types.Categories`, sorted by id.

    Args:
        entries: `{'id': int, 'name': str, 'isthing': 0 or 1, 'color': [r, g, b]}`; categories
            without a colour are given one.
        where: name of the list for error messages.

    Raises:
        InputError: a field is missing or wrong, ids or names occur twice, or the list is empty.
    """
    for position, entry in enumerate(entries):
        at = f'{where}: categories[{position}]'
        for name, kind in (('id', int), ('name', str)):
            field(entry, name, kind, at)
        flag(entry, 'isthing', at)
        color = entry.get('color', [0, 0, 0])
        if not (
            isinstance(color, (list, tuple))
            and [type(c) for c in color] == [int] * 3
            and all(0 <= c <= 255 for c in color)
        ):
            raise InputError(
                f"{at}: field 'color' is {color!r}; give three integers 0 to 255 (red, green, "
                'blue), or leave it out.'
            )
    ordered = sorted(entries, key=lambda entry: entry['id'])
    for name in ('id', 'name'):
        values = [entry[name] for entry in ordered]
        if twice := [value for value in values if values.count(value) > 1]:
            raise InputError(
                f'{where}: category {name} {twice[0]!r} occurs twice; every {name} must be unique.'
            )
    if not ordered:
        raise InputError(f'{where}: the list of categories is empty; list at least one.')
    return types.Categories(
        names=tuple(entry['name'] for entry in ordered),
        is_thing=tuple(bool(entry['isthing']) for entry in ordered),
        colors=tuple(
            tuple(entry.get('color') or _default_color(label))
            for label, entry in enumerate(ordered)
        ),
        ids=tuple(entry['id'] for entry in ordered),
    )


def category_entries(categories: types.Categories) -> list[dict[str, Any]]:
    """Converts categories to JSON entries; the inverse of `parse_categories`."""
    columns = zip(
        categories.ids, categories.names, categories.is_thing, categories.colors, strict=True
    )
    return [
        {'id': category_id, 'name': name, 'isthing': int(is_thing), 'color': list(color)}
        for category_id, name, is_thing, color in columns
    ]


def read_categories(path: str | os.PathLike) -> types.Categories:
    """Reads categories from a JSON file: a list of them, or an object with a field 'categories'.

    Raises:
        MissingFileError: there is no such file.
        InputError: the file is not JSON, or its categories are not in the COCO format.
    """
    content = read_json(path, (list, dict))
    if isinstance(content, dict):
        content = field(content, 'categories', list, f'{path}')
    return parse_categories(content, f'{path}')


def conflict(
    listed: types.Categories, known: types.Categories, *, in_listed: str, in_known: str
) -> str | None:
    """Describes the first category whose id, name or thing flag differs between two lists.

    Colours may differ, and `known` may have further categories.

    Args:
        listed: the categories to look up.
        known: the categories among which they are looked up by id.
        in_listed: where `listed` comes from, in words, such as 'in the training split'.
        in_known: where `known` comes from, in words.

    Returns:
        the difference in words, or None if there is none.
    """
    expected = dict(zip(known.ids, known.words, strict=True))
    for category_id, words in zip(listed.ids, listed.words, strict=True):
        if words != expected.get(category_id):
            return (
                f'category {category_id} is {words} {in_listed} and '
                f'{expected.get(category_id, "missing")} {in_known}'
            )
    return None


def check_validation_categories(
    listed: types.Categories, training: types.Categories, where: object
) -> None:
    """Checks that all categories of a validation split are in the training split.

    The validation split may list fewer.

    Raises:
        InputError: the training split lacks a category, or has it with another name or thing flag.
    """
    found = conflict(listed, training, in_listed='here', in_known='in the training split')
    if found:
        raise InputError(
            f'{where}: the categories are not those of the training split: {found}; give every '
            'class the same id, name and thing flag in both lists.'
        )


def _default_color(label: int) -> tuple[int, int, int]:
    # Steps of the golden ratio keep neighbouring classes far apart on the colour wheel.
    hue, value = label * 0.618034 % 1.0, 0.6 + 0.2 * (label % 3)
    return tuple(int(255 * channel) for channel in colorsys.hsv_to_rgb(hue, 0.7, value))
