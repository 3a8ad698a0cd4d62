"""Colour layers and the pure functions under them; pictures float32 [B, H, W, 3] in [0, 255].

Factors mean what they mean in KerasCV's layers of the same names, except where a docstring says otherwise.
"""

import functools
import math
from typing import Any

import keras
import tensorflow as tf

from bloodcell_dist.augment.base import Range, StatelessAugmentation, as_range, in_range, per_pixel
from bloodcell_dist.augment.layout import along_rows, from_rows, picture_size, rows, settled

GREY_WEIGHTS = (0.2989, 0.587, 0.114)  # tf.image.rgb_to_grayscale's


def clip(images: tf.Tensor) -> tf.Tensor:
    """Clip to [0, 255]."""
    return tf.clip_by_value(images, 0.0, 255.0)


def grey(images: tf.Tensor) -> tf.Tensor:
    """Brightness as TensorFlow weighs it: float32 [B, H, W, 1]."""
    red, green, blue = tf.split(images, 3, axis=-1)
    return GREY_WEIGHTS[0] * red + GREY_WEIGHTS[1] * green + GREY_WEIGHTS[2] * blue


def channel_statistics(images: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
    """Least, mean and greatest value of each channel, float32 [B, 1, 1, 3] each.

    Folding 32 stripes of the picture onto each other first vectorises; plain reductions take 2.6 times as long
    compiled on a CPU, and these are half of the cost of an operation.
    """
    height, width = picture_size(images)
    pixels = tf.reshape(images, [-1, height * width, 3])
    stripes = tf.split(pixels, math.gcd(height * width, 32), axis=1)
    low = tf.reduce_min(functools.reduce(tf.minimum, stripes), axis=1)
    high = tf.reduce_max(functools.reduce(tf.maximum, stripes), axis=1)
    mean = tf.reduce_sum(functools.reduce(tf.add, stripes), axis=1) / (height * width)
    return low[:, None, None], mean[:, None, None], high[:, None, None]


def scale_channels(images: tf.Tensor, scale: tf.Tensor, offset: tf.Tensor) -> tf.Tensor:
    """clip(scale * value + offset) by channel; float32 [B, 1, 1, 3] each, `scale` >= 0."""
    _, width = picture_size(images)
    scale, offset = settled(along_rows(scale, width), along_rows(offset, width))
    return from_rows(clip(scale * rows(images) + offset))


def adjust_contrast(images: tf.Tensor, factors: tf.Tensor) -> tf.Tensor:
    """Stretch each channel of each picture about its mean by `factors`, float32 [B]."""
    images = settled(images)
    _, means, _ = channel_statistics(images)
    factors = per_pixel(factors)
    return scale_channels(images, factors + tf.zeros_like(means), means - factors * means)


def adjust_saturation(images: tf.Tensor, factors: tf.Tensor) -> tf.Tensor:
    """Multiply the saturation of HSV by `factors` (float32 [B], >= 0, inf allowed), up to full saturation.

    At fixed hue and value all distances from the brightest channel scale alike, so no conversion is needed.
    """
    images = settled(images)
    red, green, blue = tf.split(images, 3, axis=-1)
    value = tf.maximum(tf.maximum(red, green), blue)
    chroma = value - tf.minimum(tf.minimum(red, green), blue)
    full = value / tf.maximum(chroma, 1e-6)
    return clip(value - (value - images) * tf.minimum(per_pixel(factors), full))


def rotate_hue(images: tf.Tensor, turns: tf.Tensor) -> tf.Tensor:
    """Turn the hue of HSV by fractions of a full circle, float32 [B], in [-1, 1]."""
    red, green, blue = tf.split(settled(images), 3, axis=-1)
    value = tf.maximum(tf.maximum(red, green), blue)
    chroma = value - tf.minimum(tf.minimum(red, green), blue)
    per_chroma = 1.0 / tf.maximum(chroma, 1e-6)
    sextant = tf.where(
        value == red,
        (green - blue) * per_chroma,
        tf.where(value == green, 2.0 + (blue - red) * per_chroma, 4.0 + (red - green) * per_chroma),
    )
    value, chroma, sextant = settled(value, chroma, sextant + 6.0 * per_pixel(turns))  # per pixel, not per channel
    # A channel lies below the brightest one by chroma * (0 .. 1), a trapezium of its distance from the hue.
    place = tf.constant([5.0, 3.0, 1.0]) + sextant
    place = place - 6.0 * tf.floor(place / 6.0)
    return clip(value - chroma * tf.clip_by_value(tf.minimum(place, 4.0 - place), 0.0, 1.0))


class _OneFactor(StatelessAugmentation):
    """A colour layer with one random factor per example."""

    parameter_draws = 1

    def __init__(self, factor: Range, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.factor = as_range(factor, "factor")

    def adjust(self, images: tf.Tensor, factors: tf.Tensor) -> tf.Tensor:
        raise NotImplementedError

    def apply(self, images: tf.Tensor, labels: tf.Tensor, draws: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        return self.adjust(images, in_range(draws[:, 0], self.factor)), labels

    def get_config(self) -> dict[str, Any]:
        return {**super().get_config(), "factor": self.factor}


class _OneShare(_OneFactor):
    """With a factor within [0, 1]."""

    def __init__(self, factor: tuple[float, float], **kwargs: Any) -> None:
        super().__init__(factor, **kwargs)
        if self.factor[0] < 0.0 or self.factor[1] > 1.0:
            raise ValueError(f"factor must be a pair within [0, 1], got {factor!r}")


@keras.saving.register_keras_serializable(package="bloodcell_dist")
class RandomBrightness(_OneFactor):
    """Add factor * 255; factor: -1 is black, 1 is white, one number v means (-v, v)."""

    def adjust(self, images: tf.Tensor, factors: tf.Tensor) -> tf.Tensor:
        return from_rows(clip(rows(images) + 255.0 * factors[:, None, None]))


@keras.saving.register_keras_serializable(package="bloodcell_dist")
class RandomContrast(_OneFactor):
    """Stretch each channel about its mean by 1 + factor; one number v means (-v, v).

    A pair is (low, high), where KerasCV writes (-low, high).
    """

    def adjust(self, images: tf.Tensor, factors: tf.Tensor) -> tf.Tensor:
        return adjust_contrast(images, 1.0 + factors)


@keras.saving.register_keras_serializable(package="bloodcell_dist")
class RandomSaturation(_OneShare):
    """Multiply the saturation by factor / (1 - factor): 0 is grey, 0.5 leaves it, 1 is full; factor: a pair."""

    def adjust(self, images: tf.Tensor, factors: tf.Tensor) -> tf.Tensor:
        return adjust_saturation(images, factors / (1.0 - factors))


@keras.saving.register_keras_serializable(package="bloodcell_dist")
class RandomHue(_OneFactor):
    """Turn the hue by factor * 180 degrees; one number v means (-v, v), which is KerasCV's v; at most 1."""

    def __init__(self, factor: Range, **kwargs: Any) -> None:
        super().__init__(factor, **kwargs)
        if self.factor[0] < -1.0 or self.factor[1] > 1.0:
            raise ValueError(f"factor must lie in [-1, 1], got {factor!r}")

    def adjust(self, images: tf.Tensor, factors: tf.Tensor) -> tf.Tensor:
        return rotate_hue(images, 0.5 * factors)


@keras.saving.register_keras_serializable(package="bloodcell_dist")
class RandomColorDegeneration(_OneShare):
    """Blend with the grey picture: 0 leaves it, 1 is grey; factor: a pair."""

    def adjust(self, images: tf.Tensor, factors: tf.Tensor) -> tf.Tensor:
        return images + per_pixel(factors) * (grey(images) - images)
