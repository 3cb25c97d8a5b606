"""The weights of the loss terms that all methods share; those of a method are its own fields."""

from __future__ import annotations

import dataclasses

from simcis_jax.settings.declare import declare


@dataclasses.dataclass(frozen=True)
class LossWeights:
    """Weights of the terms, both in the matching cost and in the loss."""

    classification: float = declare(4.0, 'Weight of the loss of the classes.', at_least=0)
    mask: float = declare(5.0, 'Weight of the cross-entropy of the masks.', at_least=0)
    dice: float = declare(5.0, 'Weight of the dice loss of the masks.', at_least=0)
    box: float = declare(5.0, 'Weight of the L1 loss of the boxes.', at_least=0)
    giou: float = declare(2.0, 'Weight of the GIoU loss of the boxes.', at_least=0)
    no_object: float = declare(
        0.1, 'Weight of a query without a target in the class loss of the softmax head.', at_least=0
    )

    def by_term(self) -> dict[str, float]:
        """The weight of each loss term, by the name of the term."""
        return {
            'class': self.classification,
            'mask': self.mask,
            'dice': self.dice,
            'box': self.box,
            'giou': self.giou,
        }
