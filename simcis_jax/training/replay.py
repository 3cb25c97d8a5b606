"""What a stage replays from earlier stages: images and stored queries, with their sizes."""

from __future__ import annotations

import contextlib
import functools
import json
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from simcis_jax.continual import image_memory
from simcis_jax.continual.image_memory import Labelled
from simcis_jax.continual.stages import Stage
from simcis_jax.data.source import Source
from simcis_jax.data.storage_size import label_bytes, stored_bytes
from simcis_jax.errors import InputError, MissingFileError
from simcis_jax.runtime.files import write_atomically
from simcis_jax.runtime.json_files import read_json
from simcis_jax.runtime.progress import Progress
from simcis_jax.settings.validated import Settings
from simcis_jax.training.stage_folder import StageFolder

_STREAM = 2**32 - 1  # Random stream of the choice; differs from every stage index.


class StoredBytes:
    """The sizes of images with their labels in bytes, which are read once per run.

    Like `replay.json`, they stay the same when a run goes on.

    Args:
        source: the training split.
        path: the JSON file that keeps them; None = none. It is read here, and written by `save`.
    """

    def __init__(self, source: Source, path: Path | None = None):
        self._source, self._path, self._sizes, self._saved = source, path, {}, 0
        if path is not None:
            with contextlib.suppress(InputError, MissingFileError):  # Damaged: all are read again.
                self._sizes = read_json(path, dict)
            self._saved = len(self._sizes)

    def __call__(self, index: int, classes: Collection[int]) -> int:
        """The size of an image file and of its segments of `classes`."""
        key = f'{index}: {sorted(classes)}'
        if not isinstance(self._sizes.get(key), int):
            self._sizes[key] = stored_bytes(self._source, index, classes)
        return self._sizes[key]

    def save(self) -> None:
        """Writes the file if there is anything new."""
        if self._path is not None and len(self._sizes) > self._saved:
            write_atomically(self._path, json.dumps(self._sizes))


def image_memories(
    source: Source, stages: Sequence[Stage], settings: Settings, bytes_of: StoredBytes | None = None
) -> list[Labelled]:
    """The images that each stage replays; they depend only on data set, protocol and seed.

    Args:
        source: the training split.
        stages: all stages.
        settings: those of the run.
        bytes_of: the sizes of its images; None = they are read.

    Raises:
        InputError: `protocol.replay_megabytes` is too small for one image.
        FileError: an image whose size is needed cannot be read.
    """
    protocol = settings.protocol
    if not (protocol.replay_images or protocol.replay_megabytes):
        return [image_memory.NOTHING] * len(stages)
    rng = np.random.default_rng([settings.training.seed, _STREAM])
    return image_memory.image_memories(
        [source.classes_of(index) for index in range(len(source))],
        stages,
        protocol.setting,
        ranks=rng.permutation(len(source)),
        num_images=protocol.replay_images,
        num_bytes=protocol.replay_megabytes * 1e6,
        bytes_of=bytes_of or StoredBytes(source),
        counts_of=functools.cache(
            lambda index: np.bincount(source.segments_of(index), minlength=len(source.categories))
        ),
        order=settings.method.replay_order,
    )


def record(
    folder: StageFolder, source: Source, memory: Labelled, queries: Mapping[str, int]
) -> dict[str, Any]:
    """Writes `replay.json` of a stage, unless it is there; returns its content.

    What a stage replays depends on data set, config and the stage before. All of these stay the
    same when a run resumes, so the images are read once.
    """
    with contextlib.suppress(InputError, MissingFileError):
        found = read_json(folder.replay, dict)
        if found.get('num_images') == len(memory) and queries.items() <= found.items():
            return found
    found = contents(source, memory, queries)
    folder.write_replay(found)
    return found


def contents(source: Source, memory: Labelled, queries: Mapping[str, int]) -> dict[str, Any]:
    """The content of `replay.json`.

    Args:
        source: the training split.
        memory: the replayed images with their labels.
        queries: what the method replays in addition; see `Method.replayed`.
    """
    images = []
    progress = Progress('replayed images', len(memory), 'images')
    for index, labels in memory.items():
        example = source[index]
        images.append(
            {
                'image_id': example.image_id,
                'classes': [source.categories.names[label] for label in sorted(labels)],
                'bytes': source.image_bytes(index) + label_bytes(example, labels),
            }
        )
        progress.advance()
    return {
        'num_images': len(images),
        'image_bytes': sum(image['bytes'] for image in images),
        **queries,
        'images': images,
    }


def summary(replayed: Mapping[str, Any]) -> str:
    """One line about the `contents`, for the output of a run."""
    parts = [
        f'{replayed[number]} {unit} ({replayed[num_bytes] / 1e6:.2f} MB)'
        for number, unit, num_bytes in (
            ('num_images', 'images', 'image_bytes'),
            ('queries', 'stored queries', 'query_bytes'),
        )
        if replayed.get(number)
    ]
    return ' and '.join(parts) or 'nothing'
