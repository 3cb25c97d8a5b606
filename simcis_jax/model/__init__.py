"""The network: images -> Predictions. Independent of stages, losses and data sets."""
