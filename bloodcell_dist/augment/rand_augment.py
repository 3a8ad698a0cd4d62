"""RandAugment without a loop over examples: different operations for different pictures, in a few passes."""

from typing import Any, NamedTuple

import keras
import tensorflow as tf

from bloodcell_dist import randomness
from bloodcell_dist.augment import geometry
from bloodcell_dist.augment.affine import GeometricAugmentation
from bloodcell_dist.augment.colour import channel_statistics, clip, grey
from bloodcell_dist.augment.geometry import Affine

OPERATIONS = (
    "auto_contrast",
    "solarize",
    "color",
    "contrast",
    "brightness",
    "shear_x",
    "shear_y",
    "translate_x",
    "translate_y",
)
_DRAWS_PER_OPERATION = 5


class Operation(NamedTuple):
    """One operation per example, with its strengths; each float32 [B] but `kind`, int32 [B], -1 for none.

    Strengths as KerasCV's RandAugment draws them: `level` (Normal, clipped to [0, 1]) for solarize's addition, color
    and shear; `threshold` (Normal, clipped to [0, 1]) for solarize; `spread` (uniform in [-magnitude, magnitude]) for
    contrast, brightness and translation; its sign is also shear's.
    """

    kind: tf.Tensor
    level: tf.Tensor
    threshold: tf.Tensor
    spread: tf.Tensor

    def where(self, name: str, value: tf.Tensor, otherwise: float = 0.0) -> tf.Tensor:
        """`value` for the examples that undergo the operation `name`, and `otherwise` for the rest."""
        return tf.where(self.kind == OPERATIONS.index(name), value, otherwise)


@keras.saving.register_keras_serializable(package="bloodcell_dist")
class RandAugment(GeometricAugmentation):
    """RandAugment (arXiv 1909.13719) with the operations and strengths of KerasCV's, but equalise.

    Colour operations are carried out in their order. Every one of them has the form
    clip(scale * pixel + offset + share * grey), solarised above a threshold, so one pass serves all examples whatever
    their operation. All moves of a picture are joined in one map, applied after its colour operations (the order
    matters only where contrast meets reflected borders). Shear keeps the centre.

    Equalise is missing: histogram equalisation looks every pixel up in a table of its picture, and is planned together
    with the other colour operations of that kind. KerasCV's own counts with HistogramFixedWidth, which XLA cannot
    compile; `engine: kerascv` includes it.
    """

    recolours = True

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
            rate: probability of carrying out each drawn operation.
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
        """The operations of every example in their order; draws: float32 [B, parameter_draws]."""
        parts = tf.split(draws, self.augmentations_per_image, axis=1)
        return [self._operation(part) for part in parts]

    def _operation(self, draws: tf.Tensor) -> Operation:
        kind = tf.cast(tf.floor(len(OPERATIONS) * draws[:, 0]), tf.int32)
        noise = self.magnitude_stddev * randomness.normal(draws[:, 2:4])
        return Operation(
            kind=tf.where(draws[:, 1] < self.rate, kind, -1),
            level=tf.clip_by_value(self.magnitude + noise[:, 0], 0.0, 1.0),
            threshold=tf.clip_by_value(1.0 - self.magnitude + noise[:, 1], 0.0, 1.0),
            spread=self.magnitude * (2.0 * draws[:, 4] - 1.0),
        )

    def recolour(self, images: tf.Tensor, draws: tf.Tensor) -> tf.Tensor:
        for operation in self.operations(draws):
            images = recolour_once(images, operation)
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


def recolour_once(images: tf.Tensor, operation: Operation) -> tf.Tensor:
    """Carry out each example's colour operation; pictures with another operation, or none, stay as they are."""

    def pick(name: str, value: tf.Tensor, otherwise: float = 0.0) -> tf.Tensor:
        return operation.where(name, value, otherwise)[:, None, None, None]

    kind = operation.kind[:, None, None, None]
    low, mean, high = channel_statistics(images)
    stretch = (kind == OPERATIONS.index("auto_contrast")) & (high > low)
    stretch_scale = 255.0 / tf.maximum(high - low, 1e-6)
    contrast = pick("contrast", operation.spread)
    degeneration = pick("color", operation.level)
    # KerasCV adds at most 110 before it solarises, so as not to wipe the picture out.
    added = pick("brightness", 255.0 * operation.spread) + pick("solarize", 110.0 * operation.level)
    scale = tf.where(stretch, stretch_scale, 1.0 + contrast - degeneration)
    offset = tf.where(stretch, -low * stretch_scale, added - contrast * mean)
    images = clip(scale * images + offset + degeneration * grey(images))
    threshold = pick("solarize", 255.0 * operation.threshold, otherwise=256.0)
    return tf.where(images < threshold, images, 255.0 - images)


def move_once(operation: Operation, height: int, width: int) -> Affine:
    """The map of each example's geometric operation; identity for the others."""
    signed_level = operation.level * tf.where(operation.spread < 0.0, -1.0, 1.0)
    sheared = geometry.shear(operation.where("shear_x", signed_level), operation.where("shear_y", signed_level))
    moved = geometry.translation(
        operation.where("translate_x", width * operation.spread),
        operation.where("translate_y", height * operation.spread),
    )
    return geometry.compose(sheared, moved)
