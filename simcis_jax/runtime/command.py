"""What all commands share: arguments, config, process setup and error output."""

from __future__ import annotations

import argparse
import ast
import contextlib
import difflib
import os
import re
import runpy
import signal
import sys
import traceback
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NoReturn

from absl import flags, logging
from ml_collections import ConfigDict

from simcis_jax.errors import InputError, MissingFileError, UserError
from simcis_jax.runtime.allocator import configure_malloc
from simcis_jax.runtime.compilation import enable_compilation_cache
from simcis_jax.runtime.object_store import is_url

CONFIGS = Path(__file__).parent.parent / 'configs'  # In a checkout, a link to the top level.
CONFIG_FLAG = '--config.'  # Prefix of arguments that change a config value.
KEY = re.compile(r'\w+(\.\w+)+')  # GROUP.KEY


def make_parser(name: str, description: str) -> argparse.ArgumentParser:
    """An argument parser that accepts no abbreviated flags."""
    return argparse.ArgumentParser(prog=name, description=description, allow_abbrev=False)


def path(text: str) -> str:
    """Argument type for paths on a disk; expands `~`, which the shell does not after `=`."""
    if is_url(text):
        raise argparse.ArgumentTypeError(
            f'{text} must be a path on a disk; only --workdir of simcis_jax.main and '
            'data.root of a prepared data set may be in an object store; copy it'
        )
    return path_or_address(text)


def path_or_address(text: str) -> str:
    """Argument type for paths and for addresses in object stores."""
    if not text:
        raise argparse.ArgumentTypeError('a path is missing after the "="')
    return os.path.expanduser(text)


def split_overrides(
    parser: argparse.ArgumentParser, arguments: Sequence[str] | None = None, *, hint: str = ''
) -> tuple[argparse.Namespace, list[str]]:
    """Parses arguments and splits off those of the form `--config.GROUP.KEY=VALUE`.

    Args:
        parser: parser of all other arguments.
        arguments: None = the command line of this process.
        hint: put before the error message for an unknown argument, such as 'try this; '.

    Returns:
        The parsed arguments, and the list of `--config.GROUP.KEY=VALUE` arguments.
    """
    options, overrides = parser.parse_known_args(arguments)
    for text in overrides:
        if not text.startswith(CONFIG_FLAG):
            parser.error(
                f'unexpected {text!r}; {hint}config values are set with --config.GROUP.KEY=VALUE'
            )
    return options, overrides


def find_config(name: str) -> Path:
    """The file of a config.

    Args:
        name: a name in `configs/`, such as 'shapes_cps_8_2'; with a slash or `.py`, a path.

    Raises:
        MissingFileError: there is no such config.
    """
    is_path = '/' in name or name.endswith('.py')
    file = Path(name) if is_path else CONFIGS / f'{name}.py'
    if file.is_file():
        return file
    known = sorted(path.stem for path in CONFIGS.glob('*.py'))
    nearest = difflib.get_close_matches(Path(name).stem, known) or known
    raise MissingFileError(
        f'the config {name} does not exist; --config takes the path of a file or one of the names '
        f'in {CONFIGS}: {", ".join(nearest)}.'
    )


def read_config(name: str, overrides: Sequence[str] = ()) -> ConfigDict:
    """Reads a config by name or path and applies `--config.GROUP.KEY=VALUE` arguments.

    Raises:
        MissingFileError: there is no such config.
        InputError: the file is not a config, or a key is unknown.
    """
    file = find_config(name)
    with _naming_config(file):
        make_config = runpy.run_path(str(file)).get('get_config')
    if make_config is None:
        raise InputError(
            f'{file} is not a config: it does not define get_config(), as {CONFIGS}/common.py does.'
        )
    with _naming_config(file):
        config = make_config()
    if not isinstance(config, ConfigDict):
        raise InputError(
            f'{file} is not a config: its get_config() returns a {type(config).__name__}, but must '
            f'return a ConfigDict, as that of {CONFIGS}/common.py does.'
        )
    for text in overrides:
        _override(config, text)
    return config.lock()


@contextlib.contextmanager
def _naming_config(file: Path) -> Iterator[None]:
    """Turns any error in a config file into one line with the file and the line of the code."""
    try:
        yield
    except (UserError, OSError):
        raise
    except Exception as error:  # The file is code of the user.
        frames = traceback.extract_tb(error.__traceback__)
        lines = [f', line {x.lineno}' for x in frames if x.filename == str(file)]
        reason = ' '.join(f'{type(error).__name__}: {error}'.split())
        raise InputError(f'{file}{"".join(lines[-1:])} is not a config: {reason}') from error


def _override(config: ConfigDict, argument: str) -> None:
    """Applies `--config.GROUP.KEY=VALUE`; whether the value is allowed is checked with the rest.

    A value is written as in Python, text without quotes.
    """
    key, has_value, text = argument.removeprefix(CONFIG_FLAG).partition('=')
    if not KEY.fullmatch(key) and key not in config:
        raise InputError(f'{argument} must have the form --config.GROUP.KEY=VALUE.')
    old = config
    for name in key.split('.'):
        group = old
        known = list(group) if isinstance(group, ConfigDict) else []
        if name not in known:
            near = difflib.get_close_matches(name, known, n=1, cutoff=0.4)
            hint = f'did you mean "{near[0]}"?' if near else f'known: {", ".join(known) or "none"}.'
            raise InputError(f'unknown config key {key!r}: there is no {name!r}; {hint}')
        old = group[name]
    if isinstance(old, ConfigDict):
        raise InputError(
            f'{argument} sets a group of config keys; set those in it: '
            f'{", ".join(f"{key}.{inner}" for inner in old)}.'
        )
    if isinstance(old, bool) and not has_value:
        text = 'True'
    elif not has_value:
        raise InputError(f'{argument} has no value; write {argument}=VALUE.')
    with group.ignore_type(), group.unlocked():
        group[name] = _parse(text, old)


def _parse(text: str, old: Any) -> Any:
    """What a text on the command line means as a value in the place of another."""
    if isinstance(old, str):
        return text
    if isinstance(old, bool):
        return {'true': True, '1': True, 'false': False, '0': False}.get(text.lower(), text)
    try:
        value = ast.literal_eval(text)
    except (ValueError, SyntaxError, MemoryError, RecursionError):  # Such as names: pq,miou.
        value = text
    if isinstance(old, tuple) and not isinstance(value, tuple | list):
        # A text in the place of numbers is no entry, but the name of something else.
        if not isinstance(value, str) or all(isinstance(entry, str) for entry in old):
            return (value,)
    return value


def numbers(text: str) -> tuple[int, ...]:
    """Argument type for numbers such as 100,10,10."""
    if not re.fullmatch(r'\d+(,\d+)*', text):
        raise argparse.ArgumentTypeError(f'{text!r} must be numbers such as 100,10,10')
    return tuple(int(number) for number in text.split(','))


def changed_keys(overrides: Sequence[str]) -> list[str]:
    """The keys 'GROUP.KEY' that `--config.GROUP.KEY=VALUE` arguments change."""
    return [text.removeprefix(CONFIG_FLAG).partition('=')[0] for text in overrides]


def start(program: Callable[[], None], *, uses_devices: bool = True) -> None:
    """Sets up the process and runs a command; a `UserError` ends it with one line and status 1.

    SIGTERM and Ctrl-C end it with the status that shells use, after what `finally` blocks do.

    Args:
        program: the body of the command.
        uses_devices: whether it compiles JAX programs.
    """
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, 'reconfigure'):  # Streams of notebooks have no encoding to set.
            stream.reconfigure(errors='replace')
    logging.set_verbosity(logging.WARNING)  # Orbax logs every write at INFO.
    if not flags.FLAGS.is_parsed():
        flags.FLAGS.mark_as_parsed()  # Grain reads absl flags, which argparse leaves unparsed.
    with contextlib.suppress(ValueError):  # Only the main thread may; notebooks have others.
        signal.signal(signal.SIGTERM, lambda number, _: sys.exit(128 + number))
    try:
        if uses_devices:
            configure_malloc()
            enable_compilation_cache()
        program()
    except UserError as error:
        stop(error)
    except OSError as error:
        if error.filename is None:
            raise
        stop(
            f'{error.filename} cannot be used ({error.strerror}); check the path and your '
            'permission.'
        )
    except KeyboardInterrupt:
        print('\nCtrl-C: stopped', file=sys.stderr)
        sys.exit(128 + signal.SIGINT)


def stop(message: object) -> NoReturn:
    """Ends the program with one line and status 1."""
    print(f'error: {message}', file=sys.stderr)
    sys.exit(1)
