"""Categories for models that come with the names of their classes only."""

from __future__ import annotations

from collections.abc import Sequence

from simcis_jax.data import ade20k
from simcis_jax.data.category_list import parse_categories
from simcis_jax.types import Categories

# (number of classes, first name) of data sets with stuff -> which classes are things.
COCO_PANOPTIC = (True,) * 80 + (False,) * 53
CITYSCAPES = (False,) * 11 + (True,) * 8
KNOWN = {
    (133, 'person'): COCO_PANOPTIC,
    (19, 'road'): CITYSCAPES,
    (150, 'wall'): ade20k.CATEGORIES.is_thing,
}


def named_categories(names: Sequence[str]) -> Categories:
    """Categories with these names, by label.

    Which classes are stuff is known for COCO panoptic, ADE20K and Cityscapes; elsewhere all are
    things, whose segments are not merged. A name that occurs again gets its label appended.
    """
    is_thing = KNOWN.get((len(names), names[0].lower()), (True,) * len(names))
    unique = [
        f'{name} ({label})' if name in names[:label] else name for label, name in enumerate(names)
    ]
    rows = zip(unique, is_thing, strict=True)
    return parse_categories(
        [{'id': i, 'name': name, 'isthing': int(thing)} for i, (name, thing) in enumerate(rows)],
        'class names',
    )


def first_difference(names: Sequence[str], others: Sequence[str]) -> str | None:
    """The first label that has another name in the second list, in words; None if all agree.

    Only the first of several synonyms counts, as in 'door;double door' or 'road, route', and upper
    case does not.
    """
    if len(names) != len(others):
        return f'{len(names)} classes and {len(others)}'
    for label, (name, other) in enumerate(zip(names, others, strict=True)):
        if _plain(name) != _plain(other):
            return f'label {label} is {name!r} and {other!r}'
    return None


def _plain(name: str) -> str:
    return name.replace(';', ',').split(',')[0].strip().lower().replace('_', ' ')
