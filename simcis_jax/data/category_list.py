"""Categories as COCO files list them: id, name, thing flag, colour."""

from __future__ import annotations

import colorsys
import json
import os
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

from simcis_jax import types
from simcis_jax.errors import InputError, reading


def read_json(path: str | os.PathLike, kind: type | tuple[type, ...]) -> Any:
    """The content of a JSON file, which is a `kind`, dict or list.

    Raises:
        MissingFileError: there is no such file.
        FileError: it cannot be read.
        InputError: it is no JSON, or holds something else.
    """
    path = pathlib.Path(path)
    with reading(path):
        encoded = path.read_bytes()
    try:
        content = json.loads(encoded)
    except (ValueError, RecursionError) as error:
        raise InputError(f'{path} is not JSON ({error}); replace the file.') from None
    if not isinstance(content, kind):
        name = {dict: 'object', list: 'list'}.get(kind, 'object or list')
        raise InputError(f'{path} holds a {type(content).__name__}; a JSON {name} is needed.')
    return content


def field(entry: Any, name: str, kind: type | tuple[type, ...], where: str) -> Any:
    """The field of an entry of a JSON, or an error that says where it is missing."""
    value = entry.get(name) if isinstance(entry, Mapping) else None
    if not isinstance(value, kind) or isinstance(value, bool):
        kinds = kind if isinstance(kind, tuple) else (kind,)
        wanted = ' or '.join(kind.__name__ for kind in kinds)
        raise InputError(
            f'{where}: field {name!r} is {value!r}, but a COCO panoptic file needs {wanted} there.'
        )
    return value


def flag(entry: Mapping[str, Any], name: str, where: str, *, default: int | None = None) -> bool:
    """A field of an entry that is 0 or 1 (or false or true), as bool."""
    value = entry.get(name, default)
    if not isinstance(value, int) or value not in (0, 1):
        raise InputError(f'{where}: field {name!r} is {value!r}; it must be 0 or 1.')
    return bool(value)


def parse_categories(entries: Sequence[Mapping[str, Any]], where: str) -> types.Categories:
    """Category entries as `types.Categories`, sorted by id.

    Args:
        entries: `{'id': int, 'name': str, 'isthing': 0 or 1, 'color': [r, g, b]}`; colours that
            are left out are made up.
        where: what errors call the list.

    Raises:
        InputError: a field is missing or wrong, or ids or names occur twice.
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
                f'{where}: category {name} {twice[0]!r} occurs twice; all must differ.'
            )
    if not ordered:
        raise InputError(f'{where}: the list of categories is empty; list at least one.')
    return types.Categories(
        names=tuple(entry['name'] for entry in ordered),
        is_thing=tuple(bool(entry['isthing']) for entry in ordered),
        colors=tuple(
            tuple(entry.get('color') or _made_up_color(label))
            for label, entry in enumerate(ordered)
        ),
        ids=tuple(entry['id'] for entry in ordered),
    )


def category_entries(categories: types.Categories) -> list[dict[str, Any]]:
    """The entries from which `parse_categories` makes these categories."""
    columns = zip(
        categories.ids, categories.names, categories.is_thing, categories.colors, strict=True
    )
    return [
        {'id': category_id, 'name': name, 'isthing': int(is_thing), 'color': list(color)}
        for category_id, name, is_thing, color in columns
    ]


def read_categories(path: str | os.PathLike) -> types.Categories:
    """The categories of a JSON file: a list of entries, or the field 'categories' of an object.

    Raises:
        MissingFileError: there is no such file.
        InputError: it holds something else.
    """
    content = read_json(path, (list, dict))
    if isinstance(content, dict):
        content = field(content, 'categories', list, f'{path}')
    return parse_categories(content, f'{path}')


def conflict(
    listed: types.Categories, known: types.Categories, *, in_listed: str, in_known: str
) -> str | None:
    """The first category of a list that another list does not have, or has as another class.

    Colours may differ, and `known` may be the longer list.

    Args:
        listed: the categories to look for.
        known: the categories to find them in, by id.
        in_listed: words that say where `listed` comes from.
        in_known: the same of `known`.

    Returns:
        The difference in words; None if there is none.
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
    """Checks the categories that a validation split lists; it may leave some out.

    Raises:
        InputError: one is not a category of the training split.
    """
    found = conflict(listed, training, in_listed='here', in_known='in the training split')
    if found:
        raise InputError(
            f'{where}: the categories are not those of the training split: {found}; give every '
            'class the same id, name and thing flag in both lists.'
        )


def _made_up_color(label: int) -> tuple[int, int, int]:
    # Steps of the golden ratio keep neighbouring classes far apart on the colour wheel.
    hue, value = label * 0.618034 % 1.0, 0.6 + 0.2 * (label % 3)
    return tuple(int(255 * channel) for channel in colorsys.hsv_to_rgb(hue, 0.7, value))
