"""A setting: a dataclass field with a default, a description, and the values it may have.

    @dataclasses.dataclass(frozen=True)
    class TrainingSettings:
        batch_size: int = declare(8, 'Images per step, over all devices.', at_least=1)

The annotation is the type. The check at the start of a run, its error message and the configuration
reference are all derived from this declaration. The dataclass itself checks nothing.
"""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
import math
import numbers
import os
import types
import typing
from typing import Any

from simcis_jax.errors import InputError

NOUNS = {  # Singular and plural.
    bool: ('True or False', ''),
    int: ('a whole number', 'whole numbers'),
    float: ('a finite number', 'finite numbers'),
    str: ('text', 'texts'),
    types.NoneType: ('None', ''),
}
ACCEPTED = {  # A bool is an int in Python, but is not accepted as one.
    bool: bool,
    int: numbers.Integral,
    float: numbers.Real,
    str: str,
    types.NoneType: types.NoneType,
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Rule:
    """The values that are allowed besides the type; for a tuple, of every entry."""

    at_least: float | None = None
    above: float | None = None
    at_most: float | None = None
    below: float | None = None
    multiple_of: int | None = None
    choices: tuple[str, ...] = ()  # Allowed strings; a tuple needs at least one entry.
    rising: bool = False  # Entries of a tuple must not decrease.
    path: bool = False  # The string is a path, in which `~` is expanded.

    def conditions(self) -> list[str]:
        """The rule in words, such as ['at least 0 and below 1', 'in rising order']."""
        bounds = ' and '.join(
            f'{name.replace("_", " ")} {getattr(self, name)}'
            for name in ('at_least', 'above', 'at_most', 'below')
            if getattr(self, name) is not None
        )
        multiple = f'a multiple of {self.multiple_of}' if self.multiple_of else ''
        order = 'in rising order' if self.rising else ''
        return [words for words in (bounds, multiple, order) if words]

    def allows(self, value: Any) -> bool:
        """Whether a value of the right type is allowed."""
        entries = value if isinstance(value, tuple) else (value,)
        if self.choices and not (entries and set(entries) <= set(self.choices)):
            return False
        if self.rising and any(b < a for a, b in itertools.pairwise(entries)):
            return False
        return all(self._allows_number(x) for x in entries if isinstance(x, int | float))

    def _allows_number(self, number: float) -> bool:
        return (
            (self.at_least is None or number >= self.at_least)
            and (self.above is None or number > self.above)
            and (self.at_most is None or number <= self.at_most)
            and (self.below is None or number < self.below)
            and (self.multiple_of is None or number % self.multiple_of == 0)
        )


@dataclasses.dataclass(frozen=True)
class Setting:
    """A declared field."""

    default: Any
    kind: Any  # The annotation of the field.
    meaning: str
    rule: Rule

    def requirement(self) -> str:
        """What a value must be, in words, such as 'a whole number, at least 1'."""
        return ', '.join([self._noun(), *self.rule.conditions()])

    def check(self, key: str, value: Any) -> Any:
        """The value in the declared type; integers become floats and lists tuples where needed.

        Raises:
            InputError: the value has another type, is not finite or not allowed; names `key`.
        """
        with contextlib.suppress(TypeError, OverflowError):  # An int may exceed every float.
            converted = _converted(value, self.kind)
            if self.rule.allows(converted):
                return os.path.expanduser(converted) if self.rule.path else converted
        raise InputError(f'{key}={value!r} must be {self.requirement()}.')

    def _noun(self) -> str:
        if self.rule.path:
            return 'a path'
        if self.rule.choices:
            number = 'one' if self.kind is str else 'one or more'
            return f'{number} of {", ".join(map(repr, self.rule.choices))}'
        options = typing.get_args(self.kind) if _is_union(self.kind) else (self.kind,)
        # None comes first, because the conditions that follow concern the other type.
        options = sorted(options, key=lambda option: option is not types.NoneType)
        return ' or '.join(_noun_of(option) for option in options)


def declare(default: Any, meaning: str, **rule: Any) -> Any:
    """A dataclass field that is a setting.

    Args:
        default: value if the config does not set it.
        meaning: description for the configuration reference, one or two sentences.
        **rule: fields of `Rule`.
    """
    return dataclasses.field(default=default, metadata={'meaning': meaning, 'rule': Rule(**rule)})


def declared(owner: type) -> dict[str, Setting]:
    """The settings of a dataclass by name, in order of declaration; other fields are left out."""
    kinds = typing.get_type_hints(owner)
    return {
        field.name: Setting(field.default, kinds[field.name], **field.metadata)
        for field in dataclasses.fields(owner)
        if 'rule' in field.metadata
    }


def _is_union(kind: Any) -> bool:
    return isinstance(kind, types.UnionType)


def _noun_of(kind: Any) -> str:
    if typing.get_origin(kind) is not tuple:
        return NOUNS[kind][0]
    first, *others = typing.get_args(kind)
    return NOUNS[first][1] if others == [...] else f'{1 + len(others)} {NOUNS[first][1]}'


def _converted(value: Any, kind: Any) -> Any:
    """The value converted to the annotated type; raises TypeError if it has another type."""
    if _is_union(kind):
        for option in typing.get_args(kind):
            with contextlib.suppress(TypeError):
                return _converted(value, option)
    elif typing.get_origin(kind) is tuple:
        return _converted_tuple(value, typing.get_args(kind))
    elif isinstance(value, ACCEPTED[kind]) and isinstance(value, bool) == (kind is bool):
        if kind is not float or math.isfinite(value):
            return None if value is None else kind(value)
    raise TypeError


def _converted_tuple(value: Any, kinds: tuple[Any, ...]) -> tuple[Any, ...]:
    if not isinstance(value, list | tuple):
        raise TypeError
    if kinds[-1] is ...:
        kinds = kinds[:1] * len(value)
    if len(value) != len(kinds):
        raise TypeError
    entries = tuple(_converted(*pair) for pair in zip(value, kinds, strict=True))
    if str in kinds:  # On the command line, `a,b` is a single string.
        names = (name.strip() for entry in entries for name in entry.split(','))
        return tuple(dict.fromkeys(names))
    return entries
