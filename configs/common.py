"""The base of all configs: every key, with the published values of panoptic 100-10."""

from ml_collections import ConfigDict

from simcis_jax.settings import default_config


def get_config() -> ConfigDict:
    return ConfigDict(default_config())


def merge_duplicates(config: ConfigDict, overlap: float) -> ConfigDict:
    """Changes from which IoU on queries are one segment, in pseudo-labels and in the evaluation.

    1 = never, as published.
    """
    config.evaluation.duplicate_overlap = overlap
    for name in ('pseudo_label', 'simcis', 'futcr'):
        config.method[name].duplicate_overlap = overlap
    return config


def small_model(config: ConfigDict) -> ConfigDict:
    """Changes to a network of 0.9 M parameters that trains from scratch on a CPU."""
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
