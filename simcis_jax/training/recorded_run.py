"""What the folder of a run says about its stages, for those who use its models later."""

from __future__ import annotations

import dataclasses

from simcis_jax.data.category_list import read_categories
from simcis_jax.runtime.json_files import read_json
from simcis_jax.settings.validated import Settings, from_config
from simcis_jax.training.stage_folder import StageFolder
from simcis_jax.types import Categories


@dataclasses.dataclass(frozen=True)
class RecordedRun:
    """The config and the classes of a run."""

    settings: Settings
    categories: Categories

    def seen(self, number: int) -> tuple[int, ...]:
        """The labels of the classes that are learned after a stage (1 = base), in order."""
        return self.settings.protocol.stages(len(self.categories))[number - 1].seen


def recorded_run(stage: StageFolder) -> RecordedRun | None:
    """The run that a stage belongs to; None for a converted model.

    Raises:
        InputError: the config or the classes of the run are damaged.
        FileError: they cannot be read.
    """
    config, categories = (stage.root.parent / name for name in ('config.json', 'categories.json'))
    if not config.is_file() or not categories.is_file():
        return None
    return RecordedRun(from_config(read_json(config, dict)), read_categories(categories))
