"""Reads JSON files that a user may have changed or downloaded incompletely."""

from __future__ import annotations

import json
import os
import pathlib
from typing import Any

from simcis_jax.errors import InputError, reading


def read_json(path: str | os.PathLike, kind: type | tuple[type, ...]) -> Any:
    """Reads a JSON file.

    Args:
        path: the JSON file.
        kind: the type that the content must have, dict or list, or both.

    Raises:
        MissingFileError: there is no such file.
        FileError: it cannot be read.
        InputError: it is not JSON, or its content has another type.
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
