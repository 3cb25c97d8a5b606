"""The command that converts models from and to the published PyTorch code.

    python -m simcis_jax.convert import --source=model_final.pth --out=converted/stage_1
    python -m simcis_jax.convert export --checkpoint=runs/a/stage_1 --out=model_final.pth

PyTorch is not needed, and code in a pickle is never run.
"""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from simcis_jax.continual.virtual_query import QueryBank
from simcis_jax.errors import InputError, writing
from simcis_jax.methods.simcis import SimCIS
from simcis_jax.model.resnet import BACKBONES
from simcis_jax.port import published_bank, state_dicts, torch_weights
from simcis_jax.runtime import command
from simcis_jax.runtime.files import write_atomically
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


def import_model(
    source: str, out: str, *, bank: str | None = None, counts: str | None = None
) -> str:
    """Imports a published model as the folder of a finished stage.

    ImageNet weights become a folder with only the backbone, for `training.init_backbone`.

    Args:
        source: checkpoint file, .pth, .pkl or .safetensors.
        out: new folder stage_N, where N is the last stage that the model was trained on.
        bank: the fake_query.pkl of the model; None = no query bank.
        counts: the psd_distribution.json of the model; None = all pseudo-label counts are 0.

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
    if not any(key.startswith('sem_seg_head.') for key in state):
        if bank or counts:
            raise InputError(f'{source} is only a backbone; leave out --bank and --counts.')
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
        memory = _memory(num_classes, hidden_dim, bank, counts)
        name = backbone_name(params['resnet'])
        words = f'{name}, {num_classes} classes'
        if memory:
            words += f', {np.minimum(memory.written, memory.queries.shape[1]).sum()} queries'
        usage = f'--config.training.init_from={out} --config.model.backbone={name}'
        if memory:
            usage += f' --config.method.bank_size={memory.queries.shape[1]}'
    with writing(folder.root):
        folder.checkpoints.mkdir(parents=True)
    try:
        with StageCheckpoints(folder.checkpoints) as checkpoints:
            checkpoints.save_weights(0, params, memory)
    except BaseException:
        shutil.rmtree(folder.root, ignore_errors=True)
        raise
    return f'{out}: {words}; use it with {usage}'


def _memory(
    num_classes: int, hidden_dim: int, bank: str | None, counts: str | None
) -> QueryBank | None:
    if not (bank or counts):
        return None
    if bank:
        queries, written = published_bank.read_bank(bank, num_classes)
        if queries.shape[2] != hidden_dim:
            raise InputError(
                f'{bank} has queries of dimension {queries.shape[2]}, the model of {hidden_dim}; '
                'give the bank of this model.'
            )
    else:
        size = SimCIS.bank_size
        queries = np.zeros((num_classes, size, hidden_dim), np.float32)
        written = np.zeros(num_classes, np.int32)
    totals = np.zeros(num_classes, np.float32)
    if counts:
        totals = published_bank.read_counts(counts, num_classes)
    return QueryBank(queries, written, totals)


def export_model(
    checkpoint: str, out: str, *, bank: str | None = None, counts: str | None = None
) -> str:
    """Exports the newest checkpoint of a stage to the format of the published code.

    Args:
        checkpoint: folder stage_N, or a run's work directory for its newest finished stage.
        out: file to write: .pth, which the published code loads, or .safetensors.
        bank: file for the query bank; None = not written.
        counts: file for the pseudo-label counts; None = not written.

    Returns:
        One line that says what was written.

    Raises:
        InputError: there is no checkpoint, or the published code has no such model.
        FileError: a file cannot be written.
    """
    if Path(out).suffix not in SUFFIXES:
        raise InputError(f'--out={out} must end in one of {", ".join(SUFFIXES)}.')
    folder = find_stage(checkpoint, '--checkpoint')
    with StageCheckpoints(folder.checkpoints) as checkpoints:
        has_memory = checkpoints.has('memory')
        if (bank or counts) and not has_memory:
            raise InputError(f'{checkpoint} has no query bank; leave out --bank and --counts.')
        params = checkpoints.read('params')
        memory = checkpoints.read('memory') if bank or counts else {}
    state = torch_weights.to_torch(params)
    wrong = [key for key, value in state.items() if value.dtype != np.float32]
    if wrong:
        raise InputError(
            f'{checkpoint}: {wrong[0]} is not float32, which the published code needs.'
        )
    state_dicts.write_state(out, state)
    memory = {name: np.asarray(value) for name, value in memory.items()}
    if bank:
        published_bank.write_bank(bank, memory['queries'], memory['written'])
    if counts:
        write_atomically(Path(counts), published_bank.counts_text(memory['counts']))
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
        subparser.add_argument('--bank', type=command.path, help='Query bank, fake_query.pkl.')
        subparser.add_argument(
            '--counts', type=command.path, help='Pseudo-label counts, psd_distribution.json.'
        )
    values = vars(parser.parse_args(arguments))
    values.pop('command')
    convert = values.pop('convert')
    command.start(lambda: print(convert(**values)), uses_devices=False)


if __name__ == '__main__':
    main()
