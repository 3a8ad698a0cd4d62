"""What microscopes and cameras differ in: uneven illumination and sensor noise."""

import math
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from bloodcell_dist.augment.base import Range, StatelessAugmentation, as_range, in_range
from bloodcell_dist.augment.colour import clip
from bloodcell_dist.augment.geometry import turns_to_radians
from bloodcell_dist.augment.layout import from_rows, picture_size, rows

_IRWIN_HALL_MEAN, _IRWIN_HALL_STDDEV = 4 * 127.5, math.sqrt(4 * (256**2 - 1) / 12)  # of the sum of four bytes


def illuminate(images: tf.Tensor, slope_x: tf.Tensor, slope_y: tf.Tensor, vignette: tf.Tensor) -> tf.Tensor:
    """Multiply by 1 + slope_x * x + slope_y * y - vignette * (x * x + y * y); float32 [B] each.

    x and y run from -1 to 1 between the outer edges of the picture, so its mean brightness stays but for the vignette.
    """
    height, width = picture_size(images)
    x, y = ((2.0 * np.arange(size, dtype=np.float32) + 1.0) / size - 1.0 for size in (width, height))
    x, y = np.repeat(x, 3)[None, None, :], y[None, :, None]
    slope_x, slope_y, vignette = (each[:, None, None] for each in (slope_x, slope_y, vignette))
    gain = 1.0 + (slope_x * x - vignette * x * x) + (slope_y * y - vignette * y * y)
    return from_rows(clip(rows(images) * gain))


def gaussian_noise(draws: tf.Tensor, height: int, width: int) -> tf.Tensor:
    """Nearly normal numbers, one per pixel and channel, from two uniform ones of each example.

    Threefry per number would cost ten times the rest of the layer. So the two draws (24 bits each) key a counter,
    which goes through the finaliser of MurmurHash3, and the four bytes of its word are added: Irwin-Hall, within
    3.45 standard deviations, excess kurtosis -0.3. All in whole numbers, so equal bits everywhere; good enough for
    noise in pictures, and for nothing else.

    Args:
        draws: float32 [B, 2], uniform in [0, 1).

    Returns:
        float32 [B, H, W * 3], mean 0, standard deviation 1.
    """
    keys = tf.bitcast(tf.cast(draws * 2.0**24, tf.int32), tf.uint32)
    counters = np.arange(height * width * 3, dtype=np.uint32) * np.uint32(0x9E3779B9)  # the golden ratio's bits
    words = _mix(tf.reshape(counters, [1, height, -1]) + _mix(keys[:, :1, None])) + keys[:, 1:, None]
    pairs = _and(words, 0x00FF00FF) + _and(_right(words, 8), 0x00FF00FF)
    total = _and(pairs, 0xFFFF) + _right(pairs, 16)
    total = tf.cast(tf.bitcast(total, tf.int32), tf.float32)
    return (total - _IRWIN_HALL_MEAN) / _IRWIN_HALL_STDDEV


def _mix(words: tf.Tensor) -> tf.Tensor:
    """MurmurHash3's 32-bit finaliser: each bit of the result depends on all bits."""
    words = tf.bitwise.bitwise_xor(words, _right(words, 16)) * tf.constant(0x85EBCA6B, tf.uint32)
    words = tf.bitwise.bitwise_xor(words, _right(words, 13)) * tf.constant(0xC2B2AE35, tf.uint32)
    return tf.bitwise.bitwise_xor(words, _right(words, 16))


def _right(words: tf.Tensor, bits: int) -> tf.Tensor:
    return tf.bitwise.right_shift(words, tf.constant(bits, tf.uint32))


def _and(words: tf.Tensor, mask: int) -> tf.Tensor:
    return tf.bitwise.bitwise_and(words, tf.constant(mask, tf.uint32))


@keras.saving.register_keras_serializable(package="bloodcell_dist")
class RandomIllumination(StatelessAugmentation):
    """A gradient of brightness in a random direction, and darker corners."""

    parameter_draws = 3

    def __init__(self, slope: Range = (0.0, 0.15), vignette: Range = (0.0, 0.1), **kwargs: Any) -> None:
        """
        Args:
            slope: (low, high) change of brightness from the centre to the edge, as a share; any direction.
            vignette: (low, high) share by which the middle of an edge is darker than the centre; a corner, twice that.
        """
        super().__init__(**kwargs)
        self.slope, self.vignette = as_range(slope, "slope"), as_range(vignette, "vignette")

    def apply(self, images: tf.Tensor, labels: tf.Tensor, draws: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        angle = turns_to_radians(draws[:, 0])
        slope = in_range(draws[:, 1], self.slope)
        vignette = in_range(draws[:, 2], self.vignette)
        return illuminate(images, slope * tf.cos(angle), slope * tf.sin(angle), vignette), labels

    def get_config(self) -> dict[str, Any]:
        return {**super().get_config(), "slope": self.slope, "vignette": self.vignette}


@keras.saving.register_keras_serializable(package="bloodcell_dist")
class RandomNoise(StatelessAugmentation):
    """A sensor's noise: a constant part, and shot noise whose variance grows with brightness; see `gaussian_noise`."""

    parameter_draws = 4

    def __init__(self, read: Range = (0.0, 4.0), shot: Range = (0.0, 4.0), **kwargs: Any) -> None:
        """
        Args:
            read: (low, high) standard deviation everywhere, in grey levels of 255.
            shot: (low, high) standard deviation that adds to it in white, in grey levels.
        """
        super().__init__(**kwargs)
        self.read, self.shot = as_range(read, "read"), as_range(shot, "shot")

    def apply(self, images: tf.Tensor, labels: tf.Tensor, draws: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        read, shot = in_range(draws[:, 2], self.read), in_range(draws[:, 3], self.shot)
        read, shot = read[:, None, None], shot[:, None, None]
        values = rows(images)
        deviation = tf.sqrt(read * read + shot * shot / 255.0 * values)
        return from_rows(clip(values + deviation * gaussian_noise(draws[:, :2], *picture_size(images)))), labels

    def get_config(self) -> dict[str, Any]:
        return {**super().get_config(), "read": self.read, "shot": self.shot}
