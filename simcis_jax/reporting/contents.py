"""Sections of the report: pictures, the method's memory and settings."""

from __future__ import annotations

import base64
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import cv2

from simcis_jax.errors import FileError
from simcis_jax.reporting.elements import Cell, Element, element, note, section, table
from simcis_jax.reporting.run_folder import Memory, RunFolder
from simcis_jax.settings.groups import flat

MOST_PICTURES = 12
PICTURE_WIDTH = 1000  # Maximum, in pixels.


def pictures(run: RunFolder) -> Element | None:
    """Sample predictions after each stage."""
    numbers = sorted(run.pictures)
    if not numbers:
        return None
    count = min(len(numbers), MOST_PICTURES)
    shown = sorted(
        {numbers[round(i * (len(numbers) - 1) / max(count - 1, 1))] for i in range(count)}
    )
    figures = []
    for stage in shown:
        uri, width, height = picture_uri(run.pictures[stage])
        text = (
            f'After stage {stage}: one validation image per row, with the image, its ground truth '
            'and the prediction.'
        )
        image = element('img', src=uri, alt=text, width=width, height=height)
        figures.append(element('figure', element('figcaption', f'after stage {stage}'), image))
    left_out = (
        f' {len(shown)} of {len(numbers)} stages are shown.' if len(shown) < len(numbers) else ''
    )
    return section(
        'Pictures',
        'pictures',
        note(
            'Image, ground truth and prediction; the images are evenly spaced among the validation '
            'images with a class seen so far.' + left_out
        ),
        element(
            'div', *figures, class_='pictures', role='region', aria_label='Pictures', tabindex='0'
        ),
    )


def picture_uri(path: Path) -> tuple[str, int, int]:
    """A picture as the data URI of a compressed JPEG, its width and its height.

    Raises:
        FileError: the file cannot be read as a picture.
    """
    picture = cv2.imread(str(path))
    if picture is None:
        raise FileError(f'{path} cannot be read as a picture; delete it and run --mode=evaluate.')
    height, width = picture.shape[:2]
    scale = min(1.0, PICTURE_WIDTH / width)
    size = (round(width * scale), max(1, round(height * scale)))
    if scale < 1:
        picture = cv2.resize(picture, size, interpolation=cv2.INTER_AREA)
    _, data = cv2.imencode('.jpg', picture, [cv2.IMWRITE_JPEG_QUALITY, 80])
    return 'data:image/jpeg;base64,' + base64.b64encode(data).decode('ascii'), *size


def memory(stored: Memory) -> Element:
    """The contents of the method's memory."""
    shown = stored.table
    *numbers, text = shown.columns
    rows = [[*row[:-1], Cell(row[-1], 'text')] for row in shown.rows]
    return section(
        shown.title,
        'memory',
        note(f'After step {stored.step} of stage {stored.stage}. {shown.note}'),
        table(shown.caption, [*numbers, Cell(text, 'text')], rows, class_='memory')
        if rows
        else note('It is empty.'),
    )


def settings(config: Mapping[str, Any], defaults: Mapping[str, Any]) -> Element:
    """All settings; those that differ from the defaults come first."""

    def texts(values: Mapping[str, Any]) -> dict[str, str]:
        return {
            key: json.dumps(value, ensure_ascii=False).strip('"')
            for key, value in flat(values).items()
        }

    used, known = texts(config), texts(defaults)
    different = [key for key in used if used[key] != known.get(key)]
    same = [key for key in used if key not in different]
    rows = [[key, Cell(used[key], 'text'), Cell(known.get(key, '–'), 'text')] for key in different]
    return section(
        'Settings',
        'settings',
        table(
            'Settings that differ from the defaults',
            ['key', Cell('value', 'text'), Cell('default', 'text')],
            rows,
        )
        if rows
        else note('All settings have their default values.'),
        element('h3', 'Settings with default values'),
        element(
            'ul',
            *(element('li', element('b', key), f' {used[key]}') for key in same),
            class_='settings',
        )
        if same
        else None,
    )
