"""The command that converts models from and to PyTorch.

    python -m simcis_jax.convert import --source=model_final.pth --out=converted/stage_1
    python -m simcis_jax.convert export --checkpoint=runs/a/stage_1 --out=model_final.pth

Three kinds of models can be converted: those of SimCIS; those in which the weights that a stage
adds have names of their own, see `port.growing_models`; and original Mask2Formers. An original
Mask2Former is exported to a folder of transformers if --out has no suffix, and need not be
imported: training.init_from and simcis_jax.predict read it as it is.

PyTorch is not needed, and code in a pickle is never run.
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from simcis_jax.continual.new_rows import without_unseen_rows
from simcis_jax.errors import InputError, naming, writing
from simcis_jax.methods import METHODS
from simcis_jax.model.backbones import family_of
from simcis_jax.port import growing_models, hugging_face, names, state_dicts, torch_weights
from simcis_jax.port.architecture import backbone_name, plain_settings
from simcis_jax.runtime import command
from simcis_jax.training.checkpointing import StageCheckpoints
from simcis_jax.training.find_stage import find_stage
from simcis_jax.training.recorded_run import RecordedRun, recorded_run
from simcis_jax.training.stage_folder import StageFolder

SUFFIXES = ('.pth', '.safetensors')


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
    _check_new(folder.root)
    if hugging_face.is_folder_of_model(source):
        raise _needs_no_conversion(source)
    state = state_dicts.read_state(source)
    files = {flag: path for flag, path in files.items() if path}
    if not any(key.startswith('sem_seg_head.') for key in state):
        if files:
            raise InputError(f'{source} is only a backbone; leave out {_flags(files)}.')
        params = state_dicts.backbone_params(source, state)
        words, memory = f'{backbone_name(params)} backbone', None
        usage = f'--config.training.init_backbone={out}'
    else:
        if not folder.number:
            raise InputError(
                f'--out={out} must end in stage_N, N being the last trained stage (1 = base).'
            )
        memory = None
        if growing_models.is_growing(state):
            params, words = _growing(source, state, folder, files)
        else:
            layout = state_dicts.layout_of(state)
            if layout is not names.PUBLISHED:
                raise _needs_no_conversion(source)
            params = state_dicts.to_params(source, state, layout)
            num_classes, hidden_dim = state[f'{names.PREDICTOR}.class_embed.weight'].shape
            words = f'{num_classes} classes'
        name = backbone_name(params)
        words = f'{name}, {words}'
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


def _growing(
    source: str, state: Mapping[str, np.ndarray], folder: StageFolder, files: Mapping[str, str]
) -> tuple[dict[str, Any], str]:
    """Parameters of a model with the weights of every stage, and what they are in words."""
    if files:
        raise InputError(f'{source} is of a method without memory; leave out {_flags(files)}.')
    params, classes = growing_models.read(source, state)
    if len(classes) != folder.number:
        raise InputError(
            f'{source} was trained on {len(classes)} stages, so --out={folder.root} must end in '
            f'stage_{len(classes)}.'
        )
    words = f'{sum(classes)} classes in {len(classes)} stages ({_words(classes)})'
    if 'newest' in params:
        words += f', {len(params["newest"]["prompts"]["features"])} prompts a stage'
    return params, words


def export_model(
    checkpoint: str, out: str, classes: Sequence[int] | None = None, **files: str | None
) -> str:
    """Exports the newest checkpoint of a stage to the format of the published code.

    Args:
        checkpoint: folder stage_N, or a run's work directory for its newest finished stage.
        out: file to write: .pth, which the published code loads, or .safetensors; or a new folder
            of transformers, for an original Mask2Former.
        classes: the numbers of classes of the stages so far. The class head of an original
            Mask2Former is written as one for every stage; None = as one. A network with prompts
            needs them only if later stages differ and no run is there to tell.
        **files: path by flag of `MEMORY_FLAGS`; None = not written.

    Returns:
        One line that says what was written.

    Raises:
        InputError: there is no checkpoint, or the published code has no such model.
        FileError: a file cannot be written.
    """
    if Path(out).suffix not in ('', *SUFFIXES):
        raise InputError(
            f'--out={out} must end in one of {", ".join(SUFFIXES)}, or be a folder without suffix.'
        )
    if not Path(out).suffix:
        _check_new(Path(out))
    folder = find_stage(checkpoint, '--checkpoint')
    run = recorded_run(folder)
    files = {flag: path for flag, path in files.items() if path}
    with StageCheckpoints(folder.checkpoints) as checkpoints:
        if files and not checkpoints.has('memory'):
            raise InputError(f'{checkpoint} has no memory of a method; leave out {_flags(files)}.')
        params = checkpoints.read('params')
        memory = checkpoints.read('memory') if files else {}
    has_one_head = not growing_models.has_prompts(params)
    if run is not None and run.settings.model['head'] == 'softmax' and has_one_head:
        params = without_unseen_rows(params, run.seen(folder.number))
    if not Path(out).suffix:
        if classes:
            raise InputError(f'--out={out} must be a file with --classes, not a folder.')
        with naming(folder.root):
            number = hugging_face.write(out, params, **_description(run, params))
        return f'{out}: {number} arrays from {folder.root}'
    if classes or growing_models.has_prompts(params):
        classes = _classes_by_stage(folder, run, params, classes)
    with naming(folder.root):
        if classes:
            state = growing_models.write(params, classes)
        else:
            state = torch_weights.to_torch(params, _layout_of(params))
    wrong = [key for key, value in state.items() if value.dtype != np.float32]
    if wrong:
        raise InputError(
            f'{checkpoint}: {wrong[0]} is not float32, which the published code needs.'
        )
    state_dicts.write_state(out, state)
    if files:
        METHODS[method_with(files)].memory_format.write(files, memory)
    return f'{out}: {len(state)} arrays from {folder.root}'


def _check_new(folder: Path) -> None:
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise InputError(f'{folder} exists already; choose a new folder.')


def _classes_by_stage(
    folder: StageFolder,
    run: RecordedRun | None,
    params: Mapping[str, Any],
    given: Sequence[int] | None,
) -> tuple[int, ...]:
    """The numbers of classes of the stages up to that of a folder.

    Raises:
        InputError: those given are not those of the run of the folder; or the rows of one class
            head for all stages are not in the order in which they were learned.
    """
    known = None
    if run is not None:
        protocol, seen = run.settings.protocol, run.seen(folder.number)
        stages = protocol.stages(len(run.categories))[: folder.number]
        known = tuple(len(stage.current) for stage in stages)
        if not growing_models.has_prompts(params) and seen != tuple(range(len(seen))):
            raise InputError(
                f'{folder.root} has learned the classes in the order {protocol.order!r}; only '
                "'origin' can be written as a class head for every stage."
            )
    elif not given:
        known = growing_models.class_numbers(params)[: folder.number]
    given = tuple(given or known)
    if len(given) != folder.number or given != (known or given):
        wanted = _words(known) if known else f'{folder.number} numbers'
        raise InputError(
            f'--classes={_words(given)} must be {wanted}, the classes of each stage up to '
            f'{folder.root}.'
        )
    return given


def _words(numbers: Sequence[int]) -> str:
    return ','.join(map(str, numbers))


def _needs_no_conversion(source: str) -> InputError:
    return InputError(
        f'{source} holds an original Mask2Former, which needs no conversion; use it with '
        f'--config.training.init_from={source}.'
    )


def _layout_of(params: Mapping[str, Any]) -> names.Layout:
    if 'positions' in params.get('learned_queries', {}):
        return names.MASK2FORMER[family_of(params)]
    return names.PUBLISHED


def _description(run: RecordedRun | None, params: Mapping[str, Any]) -> dict[str, Any]:
    """The class names and image sides of a run; numbers for names if there is none."""
    if run is None:
        return {'names': [f'class {k}' for k in range(plain_settings(params)['num_classes'])]}
    sides = run.settings.evaluation
    return dict(names=run.categories.names, short_side=sides.short_side, max_side=sides.max_side)


def main(arguments: Sequence[str] | None = None) -> None:
    """Runs the command."""
    parser = command.make_parser('simcis_jax.convert', 'Converts models from and to PyTorch.')
    commands = parser.add_subparsers(dest='command', required=True)
    files = (
        'File .pth, .pkl or .safetensors.',
        'File .pth or .safetensors; or a folder of transformers.',
    )
    for name, convert, source, read, written in (
        ('import', import_model, 'source', files[0], 'New folder stage_N.'),
        ('export', export_model, 'checkpoint', 'Folder stage_N.', files[1]),
    ):
        subparser = commands.add_parser(name, help=convert.__doc__.splitlines()[0])
        subparser.set_defaults(convert=convert)
        subparser.add_argument(f'--{source}', type=command.path, required=True, help=read)
        subparser.add_argument('--out', type=command.path, required=True, help=written)
        for flag, words in MEMORY_FLAGS.items():
            subparser.add_argument(f'--{flag}', type=command.path, help=words)
    subparser.add_argument(
        '--classes',
        type=command.numbers,
        metavar='N,N,...',
        help='Numbers of classes of the stages so far, to write a class head for each.',
    )
    values = vars(parser.parse_args(arguments))
    values.pop('command')
    convert = values.pop('convert')
    command.start(lambda: print(convert(**values)), uses_devices=False)


if __name__ == '__main__':
    main()
