"""Manifest of a folder: sizes and checksums of its files, to detect damage."""

from __future__ import annotations

import json
import os
import zlib
from pathlib import Path

NAME = 'manifest.json'
BLOCK = 1 << 20  # Bytes read at once.


def checksum(path: Path) -> int:
    """CRC-32 of a file."""
    value = 0
    with path.open('rb') as file:
        while block := file.read(BLOCK):
            value = zlib.crc32(block, value)
    return value


def write(folder: Path) -> None:
    """Writes the manifest of all files in the subfolders, and syncs everything to disk."""
    files = {}
    for path in sorted(folder.glob('*/**/*')):
        if path.is_file():
            files[str(path.relative_to(folder))] = [path.stat().st_size, checksum(path)]
            with path.open('rb') as file:
                os.fsync(file.fileno())
    with (folder / NAME).open('w', encoding='utf-8') as file:
        json.dump(files, file, indent=0)
        file.flush()
        os.fsync(file.fileno())


def damage(folder: Path) -> str | None:
    """The first difference between a folder and its manifest, in words; None if it is intact."""
    try:
        listed = json.loads((folder / NAME).read_text('utf-8'))
        files = [(name, size, expected) for name, (size, expected) in listed.items()]
    except FileNotFoundError:
        return f'{NAME} is missing'
    except (ValueError, TypeError, AttributeError):
        return f'{NAME} is unreadable'
    for name, size, expected in files:
        path = folder / name
        if not path.is_file():
            return f'{name} is missing'
        if path.stat().st_size != size:
            return f'{name} has {path.stat().st_size} bytes instead of {size}'
        if checksum(path) != expected:
            return f'{name} has another checksum'
    return None
