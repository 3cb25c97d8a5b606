"""Checks of the data set that run before training starts."""

from __future__ import annotations

import functools
import math
from collections.abc import Iterator, Sequence

import jax

from simcis_jax.data.source import Source
from simcis_jax.errors import InputError, UserError
from simcis_jax.runtime import parallel
from simcis_jax.runtime.progress import Progress
from simcis_jax.runtime.threads import map_ahead

_NUM_THREADS = 16  # Checks wait for the disk or network, not for the CPU.
_MAX_NAMES = 10
MUCH_MEMORY = 4 << 30  # Bytes.


def check_scorable(source: Source, tasks: Sequence[str]) -> None:
    """Checks that a validation split has something to score.

    Args:
        source: the validation split.
        tasks: the value of `evaluation.tasks`.

    Raises:
        InputError: no image shows any class, or no thing class if only instances are scored.
    """
    present = _present(source)
    if tuple(tasks) == ('instance',):
        present = {label for label in present if source.categories.is_thing[label]}
    if not present:
        kind = 'things' if tuple(tasks) == ('instance',) else 'classes'
        raise InputError(
            f'None of the {len(source)} images of {source.name!r} holds any {kind} that '
            f'evaluation.tasks={tuple(tasks)} could score; choose another data.val_split or '
            'evaluation.tasks, or annotate its images.'
        )


def absent_classes(training: Source, validation: Source) -> list[str]:
    """One warning line per split in which some classes never occur."""
    lines = []
    for source, consequence in ((training, 'cannot be learned'), (validation, 'are not scored')):
        present = _present(source)
        names = [name for label, name in enumerate(source.categories.names) if label not in present]
        if names:
            shown = ', '.join(names[:_MAX_NAMES]) + (', ...' if len(names) > _MAX_NAMES else '')
            lines.append(
                f'warning: {len(names)} of {len(source.categories)} classes never occur in '
                f'{source.name} and {consequence}: {shown}'
            )
    return lines


def large_images(validation: Source, num_queries: int, num_tasks: int) -> list[str]:
    """A warning line if the masks of all queries at the size of the largest image need much memory.

    The masks of every query exist once, and once more for each task that post-processes them.
    """
    sizes = [validation.size_of(index) for index in range(len(validation))]
    height, width = max(sizes, key=math.prod)
    size = 4 * num_queries * height * width * (1 + num_tasks)  # Masks are float32.
    if size < MUCH_MEMORY:
        return []
    return [
        f'warning: {validation.name} has images of {width}x{height} pixels; to evaluate one, the '
        f'masks of {num_queries} queries take about {size / 2**30:.0f} GiB of device memory. If '
        'that is too much, store smaller images.'
    ]


def check_files(sources: Sequence[Source]) -> None:
    """Checks that all image and annotation files exist and have the sizes that their source lists.

    Every process checks its share of the images and then receives the faults the others found.

    Raises:
        InputError: a file is missing or has another size.
    """
    faults = [fault for source in sources for fault in _faults(source)]
    faults = [fault for share in parallel.gather_objects(faults) for fault in share]
    if faults:
        others = len(faults) - 1
        more = f' {others} more image{"s have" if others > 1 else " has"} such faults.'
        raise InputError(faults[0] + (more if others else ''))


def _faults(source: Source) -> Iterator[str]:
    """The faults in this process's share of the images."""
    indices = range(len(source))[jax.process_index() :: jax.process_count()]
    progress = Progress(f'{source.name} files', len(indices), 'images', only_if_slow=True)
    check = functools.partial(_fault, source)
    for fault in map_ahead(check, indices, num_threads=_NUM_THREADS):
        if fault:
            yield fault
        progress.advance()


def _fault(source: Source, index: int) -> str | None:
    try:
        source.check_files(index)
    except UserError as error:
        return str(error)
    return None


def _present(source: Source) -> set[int]:
    """Classes with at least one non-crowd segment."""
    return set().union(*(source.classes_of(index) for index in range(len(source))))
