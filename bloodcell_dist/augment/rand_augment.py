"""RandAugment without a loop over examples: different operations for different pictures, in a few passes."""

from typing import Any

import keras
import tensorflow as tf

from bloodcell_dist import randomness
from bloodcell_dist.augment import geometry
from bloodcell_dist.augment.affine import GeometricAugmentation
from bloodcell_dist.augment.geometry import Affine
from bloodcell_dist.augment.mixing import GROUP_SIZE
from bloodcell_dist.augment.operations import (
    OPERATIONS,
    REDRAWN,
    RESERVED,
    Operation,
    is_member,
    move_once,
    opposite,
    recolour_once,
)

_DRAWS_PER_OPERATION = 5


@keras.saving.register_keras_serializable(package="bloodcell_dist")
class RandAugment(GeometricAugmentation):
    """RandAugment (arXiv 1909.13719) with the operations, probabilities and strengths of KerasCV's.

    Colour operations are carried out in their order, all moves of a picture joined in one map after them (the order
    matters only where contrast meets reflected borders). Shear keeps the centre.

    Operations that look at more than a value at a time are costly. So in each group of four neighbours one member,
    drawn anew for each operation, has the chance of all four to undergo equalize or color, and another one that of
    auto-contrast or contrast: histograms and means are taken of a quarter of the batch. Each example's probabilities
    are those of independent draws, and its operations are independent of each other; only neighbours exclude each
    other. The other colour operations have the form clip(scale * pixel + offset), inverted above a threshold, and one
    pass serves all examples whatever their operation.
    """

    recolours = True
    group_size = GROUP_SIZE

    def __init__(
        self,
        augmentations_per_image: int = 3,
        magnitude: float = 0.5,
        magnitude_stddev: float = 0.15,
        rate: float = 10 / 11,
        **kwargs: Any,
    ) -> None:
        """
        Args:
            augmentations_per_image: operations per picture.
            magnitude: 0 to 1, mean strength.
            magnitude_stddev: its standard deviation where KerasCV draws a normal strength.
            rate: probability of carrying out each drawn operation; each of the ten has a tenth of it.
        """
        for name, value in {
            "magnitude": magnitude,
            "magnitude_stddev": magnitude_stddev,
            "rate": rate,
        }.items():
            if not 0.0 <= value <= 1.0:
                raise ValueError(f"{name} must lie in [0, 1], got {value}")
        super().__init__(**kwargs)
        self.augmentations_per_image = augmentations_per_image
        self.magnitude, self.magnitude_stddev, self.rate = magnitude, magnitude_stddev, rate
        self.parameter_draws = _DRAWS_PER_OPERATION * augmentations_per_image

    def operations(self, draws: tf.Tensor) -> list[Operation]:
        """The operations of every example in their order; draws: float32 [B, parameter_draws].

        Raises:
            ValueError: B is known when traced and is not a multiple of four.
        """
        batch = draws.shape[0]
        if batch is not None and batch % GROUP_SIZE:
            raise ValueError(f"RandAugment needs a batch that is a multiple of {GROUP_SIZE}, got {batch} examples")
        parts = tf.split(draws, self.augmentations_per_image, axis=1)
        return [self._operation(part) for part in parts]

    def _operation(self, draws: tf.Tensor) -> Operation:
        turn = tf.cast(tf.floor(GROUP_SIZE * draws[::GROUP_SIZE, 1]), tf.int32)
        noise = self.magnitude_stddev * randomness.normal(draws[:, 2:4])
        level = tf.clip_by_value(self.magnitude + noise[:, 0], 0.0, 1.0)
        threshold = tf.clip_by_value(1.0 - self.magnitude + noise[:, 1], 0.0, 1.0)
        spread = self.magnitude * (2.0 * draws[:, 4] - 1.0)
        kind = self._kind(draws[:, 0], is_member(turn), is_member(opposite(turn)))
        return Operation(kind, level, threshold, spread, turn)

    def _kind(self, draw: tf.Tensor, redraws: tf.Tensor, stretches: tf.Tensor) -> tf.Tensor:
        """Operations by draws, float32 [B]; redraws, stretches: bool [B], who may undergo which of the costly ones."""
        each = self.rate / len(OPERATIONS)
        costly = GROUP_SIZE * each  # one member has the chance of all four
        second = tf.cast(draw >= costly, tf.int32)
        reserved = tf.where(redraws | stretches, 2.0 * costly, 0.0)
        # What is left, on average 1 - 4 * each, is shared out so that each of the others gets `each` of the whole.
        left = (draw - reserved) / (1.0 - reserved) * (1.0 - RESERVED * each)
        other = RESERVED + tf.cast(tf.floor(left / max(each, 1e-6)), tf.int32)
        other = tf.where(other < len(OPERATIONS), other, -1)
        return tf.where(draw >= reserved, other, tf.where(redraws, second, len(REDRAWN) + second))

    def recolour(self, images: tf.Tensor, draws: tf.Tensor) -> tf.Tensor:
        # In a graph as a function, which is traced for the first one only: each would take half a second.
        once = recolour_once if tf.executing_eagerly() else tf.function(recolour_once, autograph=False)
        for operation in self.operations(draws):
            images = once(images, operation)
        return images

    def affine(self, draws: tf.Tensor, height: int, width: int) -> Affine:
        total = geometry.identity(draws[:, 0])
        for operation in self.operations(draws):
            total = geometry.compose(total, move_once(operation, height, width))
        return total

    def get_config(self) -> dict[str, Any]:
        own = {
            "augmentations_per_image": self.augmentations_per_image,
            "magnitude": self.magnitude,
            "magnitude_stddev": self.magnitude_stddev,
            "rate": self.rate,
        }
        return {**super().get_config(), **own}
