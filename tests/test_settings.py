import pytest

from simcis_jax.methods.simcis import SimCIS
from simcis_jax.settings import default_config, from_config


def config_with(**changes):
    config = default_config()
    for key, value in changes.items():
        group, name = key.split('__')
        config[group][name] = value
    return config


def test_the_defaults_are_the_published_panoptic_setting():
    settings = from_config(default_config())
    assert isinstance(settings.method, SimCIS)
    assert settings.weights.classification == 4.0 and settings.sampling.num_points == 12544
    assert settings.training.base_steps == 160_000 and settings.model['num_queries'] == 100


@pytest.mark.parametrize(
    ('changes', 'message'),
    [
        (dict(model__num_querys=5), r"'model.num_querys' is unknown.*'model.num_queries'"),
        (dict(method__name='sincis'), r"method.name='sincis' is unknown; one of"),
        (dict(data__max_segments=101), r'data.max_segments=101 is more than'),
        (dict(model__queries='learned'), r'method.csl_weight, method.num_virtual_queries; set'),
        (dict(optimizer__milestones=(0.9, 0.5)), r'optimizer.milestones must be'),
        (dict(evaluation__tasks=('depth',)), r"evaluation.tasks has 'depth', which is none of"),
        (dict(evaluation__tasks=()), r'evaluation.tasks is empty'),
        (dict(evaluation__semantic_resize='masks'), r"semantic_resize has 'masks', which is none"),
        (dict(protocol__replay_images=-1), r'protocol.replay_images=-1 must be 0 or more'),
        (dict(protocol__replay_megabytes=float('nan')), r'replay_megabytes=nan must be 0 or more'),
        (dict(evaluation__padding=48), r'evaluation.padding=48 must be a multiple of 32'),
    ],
)
def test_bad_values_are_named(changes, message):
    with pytest.raises(ValueError, match=message):
        from_config(config_with(**changes))


@pytest.mark.parametrize(
    'argument', [('semantic', 'instance'), ('semantic,instance',), ('semantic, instance,semantic',)]
)
def test_tasks_may_be_written_with_commas(argument):
    settings = from_config(config_with(evaluation__tasks=argument))
    assert settings.evaluation.tasks == ('semantic', 'instance')


def test_an_unknown_group_is_refused():
    with pytest.raises(ValueError, match=r"'optimiser.clip_norm' is unknown.*optimizer.clip_norm"):
        from_config(default_config() | {'optimiser': {'clip_norm': 1.0}})
