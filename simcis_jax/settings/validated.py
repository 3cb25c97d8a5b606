"""A validated config: every key is known, has an allowed value and fits the others."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from typing import Any

from simcis_jax.errors import InputError
from simcis_jax.losses.segmentation import PointSampling
from simcis_jax.losses.weights import LossWeights
from simcis_jax.methods import METHODS, Method, make_method
from simcis_jax.model.mask2former import Mask2Former
from simcis_jax.settings.declare import declared
from simcis_jax.settings.groups import flat, group_of, nested, unknown_keys
from simcis_jax.settings.keys import (
    DECLARED,
    GROUPS,
    DataSettings,
    EvaluationSettings,
    OptimizerSettings,
    ProtocolSettings,
    TrainingSettings,
)
from simcis_jax.settings.method_choice import keys_of_others, not_chosen
from simcis_jax.settings.relations import contradictions


@dataclasses.dataclass(frozen=True)
class Settings:
    """A validated config."""

    data: DataSettings
    protocol: ProtocolSettings
    model: Mapping[str, Any]
    method: Method
    weights: LossWeights
    sampling: PointSampling
    optimizer: OptimizerSettings
    training: TrainingSettings
    evaluation: EvaluationSettings


def with_defaults(config: Mapping[str, Any]) -> dict[str, Any]:
    """A config to compare with others: complete, and with the types of JSON.

    A recorded one lacks the keys that its groups gained since; they get their defaults.
    """
    groups = [group for group in GROUPS if group_of(config, group)]
    defaults = {
        key: setting.default
        for key, setting in DECLARED.items()
        if key.rpartition('.')[0] in groups
    }
    # Tuples become lists, as in a file.
    return json.loads(json.dumps(nested(defaults | flat(config, GROUPS))))


def from_config(config: Mapping[str, Any]) -> Settings:
    """Validates a config and converts it; missing keys get their defaults.

    Raises:
        InputError: keys are unknown, change a method that is not chosen (see `method_choice`), or
            have values that are not allowed or contradict each other. There is a line per fault.
    """
    faults = list(unknown_keys(config, DECLARED, GROUPS))
    given, values = flat(config, GROUPS), {}
    for key, setting in DECLARED.items():
        try:
            values[key] = setting.check(key, given.get(key, setting.default))
        except InputError as error:
            faults.append(str(error))
    faults += contradictions(values)

    def of(group: str, owner: type) -> dict[str, Any]:
        return {k: values[f'{group}.{k}'] for k in declared(owner) if f'{group}.{k}' in values}

    name, method = values.get('method.name'), None
    if name:
        changed = [key for key, value in values.items() if value != DECLARED[key].default]
        faults += [not_chosen(key, name) for key in keys_of_others(changed, name)]
        method = make_method(name, **of(f'method.{name}', METHODS[name]))
        for key, words in method.conflicts(values):
            own = '.' not in key
            value = getattr(method, key) if own else values[key]
            faults.append(f'{f"method.{name}." if own else ""}{key}={value!r} must be {words}.')
    if faults:
        raise InputError('\n'.join(faults))
    return Settings(
        data=DataSettings(**of('data', DataSettings)),
        protocol=ProtocolSettings(**of('protocol', ProtocolSettings)),
        model=of('model', Mask2Former),
        method=method,
        weights=LossWeights(**of('loss', LossWeights)),
        sampling=PointSampling(**of('loss', PointSampling)),
        optimizer=OptimizerSettings(**of('optimizer', OptimizerSettings)),
        training=TrainingSettings(**of('training', TrainingSettings)),
        evaluation=EvaluationSettings(**of('evaluation', EvaluationSettings)),
    )
