"""When one process of a run fails, the others end within seconds and print the first error.

Otherwise they would wait for it in the next step until JAX gives up.
"""

from __future__ import annotations

import contextlib
import os
import socket
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from typing import Any, NoReturn

import jax

from simcis_jax.errors import UserError

POLLING = 500  # Milliseconds after which threads look whether the run has ended.
HEARTBEAT = 8  # Seconds after which JAX ends a run of which a process was killed.
# Keys in the store of JAX's coordination service; answers have the index of a process appended.
_CAUSE, _SEEN = 'simcis_jax/cause', 'simcis_jax/seen/'
_QUESTION, _ANSWER = 'simcis_jax/alive?', 'simcis_jax/alive/'


@contextlib.contextmanager
def end_together() -> Iterator[None]:
    """In this block, an exception ends all processes of the run with status 1.

    The process that raised it prints it as usual; the others print it with the number of that
    process. If a process was killed, they print that it does not answer. A single process runs the
    block without any change.
    """
    # Counting processes first would start the devices, before the config is checked.
    if not jax.distributed.is_initialized() or jax.process_count() == 1:
        yield
        return
    service, me, is_over = _service(), jax.process_index(), threading.Event()
    threads = (
        _when_set(service, _CAUSE, lambda cause: _end_with(service, cause), is_over),
        _when_set(
            service, _QUESTION, lambda _: service.key_value_set(f'{_ANSWER}{me}', ''), is_over
        ),
    )
    try:
        yield
    except (Exception, KeyboardInterrupt) as error:
        _fail(service, error)
    finally:  # A thread that waits for the service when Python ends would abort the process.
        is_over.set()
        for thread in threads:
            thread.join()


def _fail(service: Any, error: BaseException) -> NoReturn:
    cause = ' '.join(f'{type(error).__name__}: {error}'.split())
    cause = f'process {jax.process_index()} on {socket.gethostname()} failed: {cause}'
    if not isinstance(error, UserError):  # Maybe because it lost another process.
        _set_once(service, _QUESTION, '')
        silent = _silent(service, _ANSWER, 3)  # Meanwhile another process may tell its cause.
        if silent:
            names = ', '.join(map(str, silent))
            cause = f'process {names} does not answer: killed, or its machine is gone ({error})'
    _set_once(service, _CAUSE, cause)
    if isinstance(error, UserError):
        print(f'error: {error}', file=sys.stderr)
    else:
        traceback.print_exception(error)
        print(f'error: {cause}', file=sys.stderr)
    _end(service)


def _end_with(service: Any, cause: str) -> None:
    """Ends this process because of the first failure, unless it is its own."""
    me = jax.process_index()
    service.key_value_set(f'{_SEEN}{me}', '')
    if not cause.startswith(f'process {me} '):
        print(f'error: this process ends because of another: {cause}', file=sys.stderr)
        _end(service)


def _end(service: Any) -> NoReturn:
    """Ends this process without waiting for the others, as an ordinary exit would.

    Process 0 hosts the service and therefore ends last: JAX aborts processes that lose it.
    """
    if jax.process_index() == 0:
        _silent(service, _SEEN, 3)
        time.sleep(1)
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(1)


def _service() -> Any:
    from jax._src import distributed  # JAX has no public interface to its key-value store.

    return distributed.global_state.client


def _set_once(service: Any, key: str, value: str) -> None:
    """Sets a key, unless another process was first or the service is gone."""
    with contextlib.suppress(jax.errors.JaxRuntimeError):
        service.key_value_set(key, value)


def _when_set(
    service: Any, key: str, action: Callable[[str], None], is_over: threading.Event
) -> threading.Thread:
    """Starts a thread that calls `action` with the value of a key as soon as it is set."""

    def wait():
        while not is_over.is_set():
            with contextlib.suppress(jax.errors.JaxRuntimeError):
                try:
                    value = service.blocking_key_value_get(key, POLLING)
                except jax.errors.JaxRuntimeError as error:
                    if 'DEADLINE_EXCEEDED' in str(error):
                        continue
                    return  # JAX ends this process.
                action(value)
            return

    thread = threading.Thread(target=wait, daemon=True)
    thread.start()
    return thread


def _silent(service: Any, prefix: str, seconds: float) -> list[int]:
    """The other processes that do not set their key within `seconds`."""
    deadline, silent = time.monotonic() + seconds, []
    for index in range(jax.process_count()):
        if index == jax.process_index():
            continue
        left = max(1, int(1000 * (deadline - time.monotonic())))
        try:
            service.blocking_key_value_get(f'{prefix}{index}', left)
        except jax.errors.JaxRuntimeError:
            silent.append(index)
    return silent
