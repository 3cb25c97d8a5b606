"""A trained model, with everything that prediction needs."""

from __future__ import annotations

from typing import Any, NamedTuple

import flax.linen as nn
import numpy as np

from simcis_jax.methods.base import Method
from simcis_jax.settings.keys import EvaluationSettings
from simcis_jax.types import Categories


class TrainedModel(NamedTuple):
    """The arguments of a `Predictor`."""

    params: Any
    network: nn.Module
    categories: Categories
    seen: np.ndarray | None  # [C] bool, the classes that may be predicted; None = all.
    evaluation: EvaluationSettings
    method: Method
