"""The base of all configs: every key, with the published values of panoptic 100-10."""

from ml_collections import ConfigDict

from simcis_jax.settings.keys import default_config


def get_config() -> ConfigDict:
    return ConfigDict(default_config())


def keep_half_believed(config: ConfigDict) -> ConfigDict:
    """Changes of our own, against forgetting after a short training; see docs/methods.md.

    Queries that claim the same segment are merged, less confident pseudo-labels are accepted, and
    what is in doubt is not trained as background.
    """
    config.evaluation.duplicate_overlap = 0.5
    for name in ('pseudo_label', 'simcis', 'futcr'):
        config.method[name].update(
            pseudo_label_duplicates=0.5,
            pseudo_label_score=0.15,
            pseudo_label_overlap=0.5,
            doubt_score=0.05,
        )
    return config


def small_model(config: ConfigDict) -> ConfigDict:
    """Changes to a network of 1.3 M parameters that trains from scratch on a CPU."""
    config.model.update(
        backbone='small_stride4',
        num_queries=20,
        hidden_dim=64,
        num_heads=4,
        encoder_layers=2,
        encoder_feedforward=128,
        decoder_layers=3,
        decoder_feedforward=256,
        class_prior=0.02,
    )
    config.data.max_segments = 12
    config.loss.num_points = 128
    config.optimizer.update(
        base_learning_rate=1e-3,
        later_learning_rate=5e-4,
        backbone_multiplier=1.0,
        warmup_steps=50,
        clip_norm=1.0,
    )
    return config
