"""What a run may start from: a finished stage of another run, or a pretrained backbone."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from flax.traverse_util import flatten_dict

from simcis_jax.checkpointing import StageCheckpoints
from simcis_jax.port.state_dicts import read_backbone
from simcis_jax.workdir import StageFolder, Workdir


def finished_stage(path: str, num_stages: int, *, params: Any, memory: Any) -> StageFolder:
    """The folder of a finished stage, whose model is known to fit.

    A stage is finished when it was evaluated, or when another program trained it: its checkpoint
    has weights alone.

    Args:
        path: of the folder.
        num_stages: of this run.
        params: of this run's network; arrays or their shapes.
        memory: of this run's method; the same.

    Raises:
        ValueError: it is no finished stage, this run has no such stage, or the network differs.
    """
    folder = StageFolder(Path(path))
    if not folder.number or not folder.checkpoints.is_dir():
        raise ValueError(
            f'training.init_from={path} must be a folder stage_N of a finished stage, or one that '
            'simcis_jax.convert made; it needs its checkpoints.'
        )
    if folder.number > num_stages:
        raise ValueError(
            f'training.init_from={path} is stage {folder.number}, but protocol.base and '
            f'.increment make {num_stages} stages.'
        )
    with StageCheckpoints(folder.checkpoints) as checkpoints:
        unfinished = checkpoints.has('rest') and folder.read_report() is None
        if checkpoints.latest_step is None or unfinished:
            raise ValueError(
                f'training.init_from={path} is not finished, it has no evaluation.json; run its '
                'command again to its end.'
            )
        checkpoints.check('params', params, 'model.* as it was there')
        checkpoints.check('memory', memory, 'method.bank_size as it was there')
    return folder


def adopt(workdir: Workdir, source: StageFolder) -> None:
    """Takes over a finished stage, and those before it as far as they were evaluated."""
    for number in range(1, source.number + 1):
        stage = StageFolder(source.root.parent / f'stage_{number}')
        if number == source.number or stage.read_report() is not None:
            workdir.stage(number).adopt(stage)


def with_backbone(params: Any, path: str) -> Any:
    """Parameters whose backbone is replaced by pretrained weights.

    Args:
        params: arrays or their shapes.
        path: of ImageNet weights, a whole published model, or a folder of simcis_jax.convert.

    Raises:
        ValueError: the file holds no ResNet, or another one.
        OSError: it cannot be read.
    """
    folder = StageFolder(Path(path))
    if folder.checkpoints.is_dir():
        with StageCheckpoints(folder.checkpoints) as checkpoints:
            resnet = checkpoints.read('params')['resnet']
    else:
        resnet = read_backbone(path)
    shapes = [
        {key: x.shape for key, x in flatten_dict(tree, sep='/').items()}
        for tree in (params['resnet'], resnet)
    ]
    if shapes[0] != shapes[1]:
        raise ValueError(
            f'training.init_backbone={path} is another network than model.backbone; set '
            'model.backbone to what the file holds, resnet50 or resnet101.'
        )
    return params | {'resnet': resnet}
