"""The config of the built-in run in miniature."""

from ml_collections import ConfigDict

from simcis_jax.configs import shapes_cps_8_2
from simcis_jax.port.architecture import PLAIN
from simcis_jax.settings.method_choice import resolve


def get_config():
    """The config as a file, so that this one also works as --config."""
    config = shapes_cps_8_2.get_config()
    config.model.update(num_queries=12, hidden_dim=32, encoder_layers=1, decoder_layers=2)
    config.data.update(num_train_images=40, num_val_images=6, max_segments=10)
    config.loss.num_points = 32
    config.training.update(
        batch_size=4,
        base_steps=6,
        steps_per_class=2,
        log_every=2,
        checkpoint_every=2,
        statistics_images=6,
    )
    config.evaluation.update(
        tasks=('panoptic', 'semantic', 'instance'), batch_size=4, num_pictures=2
    )
    return config


SMALLEST = {
    'model.encoder_layers': 0,
    'model.decoder_layers': 1,
    'model.hidden_dim': 16,
    'model.num_heads': 2,
    'loss.num_points': 16,
    'evaluation.tasks': ('semantic',),
}


def tiny_config(**changes):
    """The config of a run with these changes."""
    config = get_config()
    config.update_from_flattened_dict(changes)
    return ConfigDict(resolve(config.to_dict(), changes))


def plain_config(name, **changes):
    """The smallest run of a method with the original Mask2Former."""
    plain = {f'model.{key}': value for key, value in PLAIN.items()}
    return tiny_config(
        **{'method.name': name, 'model.class_prior': None} | SMALLEST | plain | changes
    )
