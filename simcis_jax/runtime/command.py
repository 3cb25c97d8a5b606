"""What all commands share: arguments, config, process setup and error output."""

from __future__ import annotations

import argparse
import difflib
import os
import re
import runpy
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NoReturn

from absl import flags, logging
from ml_collections import ConfigDict, config_flags

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
        InputError: the file is not a config, a key is unknown, or a value has another type.
    """
    for text, key in zip(overrides, changed_keys(overrides), strict=True):
        if not KEY.fullmatch(key):
            raise InputError(f'{text} must have the form --config.GROUP.KEY=VALUE.')
    file = find_config(name)
    make_config = runpy.run_path(str(file)).get('get_config')
    if make_config is None:
        raise InputError(
            f'{file} is not a config: it does not define get_config(), as {CONFIGS}/common.py does.'
        )
    config = make_config()
    values, arguments = flags.FlagValues(), ['config', *overrides]
    try:
        # Without `sys_argv` it would read the command line of this process.
        config_flags.DEFINE_config_dict(
            'config', config, lock_config=True, flag_values=values, sys_argv=arguments
        )
        values(arguments)
    except (AttributeError, KeyError) as error:  # Unknown group or key.
        cause = error.args[0]  # The error of ConfigDict, which names the nearest key.
        text = ' '.join(str(*getattr(cause, 'args', [cause])).split())
        raise InputError(f'unknown config key {text}') from None
    except TypeError:  # A key goes on after one that has a value, such as data.name.x.
        raise InputError(
            f'unknown config key: in {", ".join(changed_keys(overrides))}, a key follows another '
            'key, which is no group'
        ) from None
    except flags.Error as error:
        raise InputError(str(error)) from None
    return values['config'].value


def changed_keys(overrides: Sequence[str]) -> list[str]:
    """The keys 'GROUP.KEY' that `--config.GROUP.KEY=VALUE` arguments change."""
    return [text.removeprefix(CONFIG_FLAG).partition('=')[0] for text in overrides]


def start(program: Callable[[], None], *, uses_devices: bool = True) -> None:
    """Sets up the process and runs a command; a `UserError` ends it with one line and status 1.

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
    try:
        if uses_devices:
            configure_malloc()
            enable_compilation_cache()
        program()
    except UserError as error:
        stop(error)


def stop(message: object) -> NoReturn:
    """Ends the program with one line and status 1."""
    print(f'error: {message}', file=sys.stderr)
    sys.exit(1)
