"""Layers that map each colour value by a curve: auto-contrast, equalisation, posterisation and solarisation.

On pictures of whole numbers each is a table of 256 entries per channel. Except for equalisation they are computed, not
looked up: compiled on a CPU a multiply-add takes less time than an entry of a table, which does not vectorise.
"""

from typing import Any

import keras
import tensorflow as tf

from bloodcell_dist.augment.base import Range, StatelessAugmentation, as_range, in_range
from bloodcell_dist.augment.colour import channel_statistics, clip, scale_channels
from bloodcell_dist.augment.histogram import equalize
from bloodcell_dist.augment.layout import from_rows, rows


def stretch(low: tf.Tensor, high: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
    """Scale and offset that map [low, high] to [0, 255]; 1 and 0 where they are equal; any shape."""
    scale = tf.where(high > low, 255.0 / tf.maximum(high - low, 1e-6), 1.0)
    return scale, tf.where(high > low, -low * scale, 0.0)


def auto_contrast(images: tf.Tensor) -> tf.Tensor:
    """Stretch each channel of each picture to [0, 255]; a channel of one value stays."""
    low, _, high = channel_statistics(images)
    return scale_channels(images, *stretch(low, high))


def solarize(images: tf.Tensor, additions: tf.Tensor, thresholds: tf.Tensor) -> tf.Tensor:
    """Add, then invert the values at or above a threshold; float32 [B] each, in [0, 255]."""
    raised = clip(rows(images) + additions[:, None, None])
    return from_rows(tf.where(raised < thresholds[:, None, None], raised, 255.0 - raised))


def posterize(images: tf.Tensor, bits: int) -> tf.Tensor:
    """Keep the `bits` highest of the 8 bits of each value; fractions are cut off too."""
    step = float(1 << (8 - bits))
    return from_rows(step * tf.floor(rows(images) / step))


@keras.saving.register_keras_serializable(package="bloodcell_dist")
class AutoContrast(StatelessAugmentation):
    """Stretches each channel to the full range, as KerasCV's layer does."""

    def apply(self, images: tf.Tensor, labels: tf.Tensor, draws: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        return auto_contrast(images), labels


@keras.saving.register_keras_serializable(package="bloodcell_dist")
class Equalization(StatelessAugmentation):
    """Equalises each channel's histogram, as KerasCV's layer with 256 bins does; results are whole numbers."""

    def apply(self, images: tf.Tensor, labels: tf.Tensor, draws: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        return equalize(images), labels


@keras.saving.register_keras_serializable(package="bloodcell_dist")
class Posterization(StatelessAugmentation):
    """Keeps the highest bits of each value, as KerasCV's layer does."""

    def __init__(self, bits: int, **kwargs: Any) -> None:
        """bits: 1 to 8; 8 leaves whole numbers alone."""
        if bits not in range(1, 9):
            raise ValueError(f"bits must be a whole number from 1 to 8, got {bits}")
        super().__init__(**kwargs)
        self.bits = bits

    def apply(self, images: tf.Tensor, labels: tf.Tensor, draws: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        return posterize(images, self.bits), labels

    def get_config(self) -> dict[str, Any]:
        return {**super().get_config(), "bits": self.bits}


@keras.saving.register_keras_serializable(package="bloodcell_dist")
class Solarization(StatelessAugmentation):
    """Inverts bright values, as KerasCV's layer does."""

    parameter_draws = 2

    def __init__(
        self, addition_factor: Range = (0.0, 0.0), threshold_factor: Range = (0.0, 0.0), **kwargs: Any
    ) -> None:
        """
        Args:
            addition_factor: (low, high) of what is added first, within [0, 255].
            threshold_factor: (low, high) of the least value that is inverted, within [0, 255].
        """
        super().__init__(**kwargs)
        self.addition_factor = as_range(addition_factor, "addition_factor")
        self.threshold_factor = as_range(threshold_factor, "threshold_factor")
        for name, bounds in {
            "addition_factor": self.addition_factor,
            "threshold_factor": self.threshold_factor,
        }.items():
            if bounds[0] < 0.0 or bounds[1] > 255.0:
                raise ValueError(f"{name} must be a pair within [0, 255], got {bounds}")

    def apply(self, images: tf.Tensor, labels: tf.Tensor, draws: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        additions = in_range(draws[:, 0], self.addition_factor)
        return solarize(images, additions, in_range(draws[:, 1], self.threshold_factor)), labels

    def get_config(self) -> dict[str, Any]:
        own = {"addition_factor": self.addition_factor, "threshold_factor": self.threshold_factor}
        return {**super().get_config(), **own}
