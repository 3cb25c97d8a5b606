"""The interface of downloaded data sets, the input of `simcis_jax.prepare`."""

from __future__ import annotations

import functools
import hashlib
import os
from typing import Protocol

from simcis_jax import types
from simcis_jax.data.source import Example
from simcis_jax.errors import UserError
from simcis_jax.runtime.progress import Progress
from simcis_jax.runtime.threads import map_ahead


class DownloadedSplit(Protocol):
    """One split of a downloaded data set."""

    name: str
    categories: types.Categories

    def __len__(self) -> int:
        """Number of images."""
        ...

    def read(self, index: int) -> tuple[bytes, Example]:
        """Returns the encoded image file and the decoded example."""
        ...

    def annotation_bytes(self, index: int) -> bytes:
        """Everything that determines the example except for the pixels of its image."""
        ...


def checksum(download: DownloadedSplit) -> str:
    """Computes a checksum of the categories and of all annotation files."""
    digest = hashlib.sha256(repr(download.categories).encode())
    progress = Progress(f'{download.name} annotations', len(download), 'images', only_if_slow=True)
    parts = map_ahead(
        functools.partial(_annotation_digest, download),
        range(len(download)),
        num_threads=os.cpu_count() or 1,
    )
    for part in parts:
        digest.update(part)
        progress.advance()
    return digest.hexdigest()


def _annotation_digest(download: DownloadedSplit, index: int) -> bytes:
    try:
        content = download.annotation_bytes(index)
    except UserError:  # Reported, or skipped, when the image is prepared.
        content = b''
    return hashlib.sha256(content).digest()
