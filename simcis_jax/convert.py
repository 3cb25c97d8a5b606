"""The command that converts models from and to the published PyTorch code.

    python -m simcis_jax.convert import --source=model_final.pth --out=converted/stage_1
    python -m simcis_jax.convert export --checkpoint=runs/a/stage_1 --out=model_final.pth

PyTorch is not needed, and code in a pickle is never run.
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from simcis_jax.errors import InputError, writing
from simcis_jax.methods import METHODS
from simcis_jax.model.resnet import BACKBONES
from simcis_jax.port import state_dicts, torch_weights
from simcis_jax.runtime import command
from simcis_jax.training.checkpointing import StageCheckpoints
from simcis_jax.training.find_stage import find_stage
from simcis_jax.training.workdir import StageFolder

SUFFIXES = ('.pth', '.safetensors')


def backbone_name(resnet: dict[str, Any]) -> str:
    """The name of the backbone with these parameters.

    Raises:
        InputError: it is neither ResNet-50 nor ResNet-101.
    """
    blocks = tuple(sum(name.startswith(f'res{stage}_') for name in resnet) for stage in range(2, 6))
    for name, settings in BACKBONES.items():
        if settings['blocks'] == blocks:
            return name
    raise InputError(
        f'a ResNet with {blocks} blocks in its stages is neither ResNet-50 nor ResNet-101.'
    )


# Flag -> what its file holds, for the files in which published code keeps the memory of a method.
MEMORY_FLAGS = {
    flag: words
    for method in METHODS.values()
    if method.memory_format
    for flag, words in method.memory_format.flags.items()
}


def method_with(files: Mapping[str, str]) -> str:
    """The first method that keeps its memory in such files, given as path by flag."""
    for name, method in METHODS.items():
        if method.memory_format and files.keys() <= method.memory_format.flags.keys():
            return name
    raise InputError(f'{_flags(files)} are files of different methods; give those of one.')


def _flags(files: Mapping[str, str]) -> str:
    return ' and '.join(f'--{flag}' for flag in files)


def import_model(source: str, out: str, **files: str | None) -> str:
    """Imports a published model as the folder of a finished stage.

    ImageNet weights become a folder with only the backbone, for `training.init_backbone`.

    Args:
        source: checkpoint file, .pth, .pkl or .safetensors.
        out: new folder stage_N, where N is the last stage that the model was trained on.
        **files: path by flag of `MEMORY_FLAGS`; None = without. Without any, there is no memory.

    Returns:
        One line that says what was written and how to use it.

    Raises:
        InputError: a file has another content, or `out` exists or has another name.
        FileError: a file cannot be read or written.
    """
    folder = StageFolder(Path(out))
    if folder.root.exists() and (not folder.root.is_dir() or any(folder.root.iterdir())):
        raise InputError(f'{out} exists already; choose a new folder.')
    state = state_dicts.read_state(source)
    files = {flag: path for flag, path in files.items() if path}
    if not any(key.startswith('sem_seg_head.') for key in state):
        if files:
            raise InputError(f'{source} is only a backbone; leave out {_flags(files)}.')
        params = state_dicts.to_params(source, state, backbone_only=True)
        words, memory = f'{backbone_name(params["resnet"])} backbone', None
        usage = f'--config.training.init_backbone={out}'
    else:
        if not folder.number:
            raise InputError(
                f'--out={out} must end in stage_N, N being the last trained stage (1 = base).'
            )
        params = state_dicts.to_params(source, state)
        num_classes, hidden_dim = state[f'{torch_weights.PREDICTOR}.class_embed.weight'].shape
        name, memory = backbone_name(params['resnet']), None
        words = f'{name}, {num_classes} classes'
        usage = f'--config.training.init_from={out} --config.model.backbone={name}'
        if files:
            method = METHODS[method_with(files)]()
            empty = jax.device_get(method.init_memory(num_classes, hidden_dim))
            memory = method.memory_format.read(files, empty)
            words += f', {method.replayed(memory).get("queries", 0)} queries'
            for key, value in method.memory_format.fields(memory).items():
                usage += f' --config.method.{method_with(files)}.{key}={value}'
    with writing(folder.root):
        folder.checkpoints.mkdir(parents=True)
    try:
        with StageCheckpoints(folder.checkpoints) as checkpoints:
            checkpoints.save_weights(0, params, memory)
    except BaseException:
        shutil.rmtree(folder.root, ignore_errors=True)
        raise
    return f'{out}: {words}; use it with {usage}'


def export_model(checkpoint: str, out: str, **files: str | None) -> str:
    """Exports the newest checkpoint of a stage to the format of the published code.

    Args:
        checkpoint: folder stage_N, or a run's work directory for its newest finished stage.
        out: file to write: .pth, which the published code loads, or .safetensors.
        **files: path by flag of `MEMORY_FLAGS`; None = not written.

    Returns:
        One line that says what was written.

    Raises:
        InputError: there is no checkpoint, or the published code has no such model.
        FileError: a file cannot be written.
    """
    if Path(out).suffix not in SUFFIXES:
        raise InputError(f'--out={out} must end in one of {", ".join(SUFFIXES)}.')
    folder = find_stage(checkpoint, '--checkpoint')
    files = {flag: path for flag, path in files.items() if path}
    with StageCheckpoints(folder.checkpoints) as checkpoints:
        if files and not checkpoints.has('memory'):
            raise InputError(f'{checkpoint} has no memory of a method; leave out {_flags(files)}.')
        params = checkpoints.read('params')
        memory = checkpoints.read('memory') if files else {}
    state = torch_weights.to_torch(params)
    wrong = [key for key, value in state.items() if value.dtype != np.float32]
    if wrong:
        raise InputError(
            f'{checkpoint}: {wrong[0]} is not float32, which the published code needs.'
        )
    state_dicts.write_state(out, state)
    if files:
        METHODS[method_with(files)].memory_format.write(files, memory)
    return f'{out}: {len(state)} arrays from {folder.root}'


def main(arguments: Sequence[str] | None = None) -> None:
    """Runs the command."""
    parser = command.make_parser('simcis_jax.convert', 'Converts models from and to PyTorch.')
    commands = parser.add_subparsers(dest='command', required=True)
    for name, convert, source, read, written in (
        (
            'import',
            import_model,
            'source',
            'File .pth, .pkl or .safetensors.',
            'New folder stage_N.',
        ),
        ('export', export_model, 'checkpoint', 'Folder stage_N.', 'File .pth or .safetensors.'),
    ):
        subparser = commands.add_parser(name, help=convert.__doc__.splitlines()[0])
        subparser.set_defaults(convert=convert)
        subparser.add_argument(f'--{source}', type=command.path, required=True, help=read)
        subparser.add_argument('--out', type=command.path, required=True, help=written)
        for flag, words in MEMORY_FLAGS.items():
            subparser.add_argument(f'--{flag}', type=command.path, help=words)
    values = vars(parser.parse_args(arguments))
    values.pop('command')
    convert = values.pop('convert')
    command.start(lambda: print(convert(**values)), uses_devices=False)


if __name__ == '__main__':
    main()
