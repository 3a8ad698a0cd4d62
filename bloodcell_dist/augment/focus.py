"""Layers that change how sharp a picture is: Gaussian blur and sharpness."""

from typing import Any

import keras
import numpy as np
import tensorflow as tf

from bloodcell_dist.augment.base import Range, StatelessAugmentation, as_range, in_range
from bloodcell_dist.augment.colour import clip
from bloodcell_dist.augment.layout import from_rows, picture_size, rows, settled

_CENTRE_WEIGHT, _SUM_OF_WEIGHTS = 5.0, 13.0  # of Pillow's SMOOTH filter; the eight neighbours weigh 1


def mirrored(images: tf.Tensor, margin: int) -> tf.Tensor:
    """Pictures with a margin reflected about their edges (c b a | a b c): [B, H + 2m, (W + 2m) * 3], pixels in a row.

    By constant places: tf.pad takes 2.3 times as long compiled on a CPU.
    """
    height, width = picture_size(images)
    if margin > min(height, width):
        raise ValueError(f"a margin of {margin} pixels needs pictures of that size, got {height} x {width}")
    y, x = (np.pad(np.arange(size), margin, mode="symmetric") for size in (height, width))
    padded = tf.gather(tf.gather(images, y, axis=1), x, axis=2)
    return settled(tf.reshape(padded, [-1, height + 2 * margin, (width + 2 * margin) * 3]))


def gaussian_weights(sigmas: tf.Tensor, size: int) -> tf.Tensor:
    """The taps of a Gaussian of `sigmas` pixels, float32 [B] -> [size, B], summing to 1; sigma 0 is a single one."""
    places = np.arange(size, dtype=np.float32) - size // 2
    weights = tf.exp(-0.5 * tf.square(places[:, None] / tf.maximum(sigmas, 1e-3)[None, :]))
    return weights / tf.reduce_sum(weights, axis=0)


def gaussian_blur(images: tf.Tensor, sigmas: tf.Tensor, size: int) -> tf.Tensor:
    """Blur by `sigmas` pixels (float32 [B]) with `size` x `size` taps, odd; reflecting at the edges."""
    height, width = picture_size(images)
    weights = gaussian_weights(sigmas, size)[:, :, None, None]
    padded = mirrored(images, size // 2)
    down = settled(tf.add_n([weights[tap] * padded[:, tap : tap + height] for tap in range(size)]))
    across = [weights[tap] * down[:, :, 3 * tap : 3 * (tap + width)] for tap in range(size)]
    return from_rows(clip(tf.add_n(across)))


def adjust_sharpness(images: tf.Tensor, factors: tf.Tensor) -> tf.Tensor:
    """Blend with the picture under Pillow's SMOOTH filter, whose border pixels stay: 1 is smooth, -1 sharpens by as
    much; float32 [B]."""
    height, width = picture_size(images)
    padded = mirrored(images, 1)
    three = [padded[:, row : row + height] for row in range(3)]
    block = tf.add_n([row[:, :, 3 * column : 3 * (column + width)] for row in three for column in range(3)])
    centre = rows(images)
    smooth = (block + (_CENTRE_WEIGHT - 1.0) * centre) / _SUM_OF_WEIGHTS
    inner = np.zeros([height, 3 * width], np.float32)
    inner[1:-1, 3:-3] = 1.0
    return from_rows(clip(centre + factors[:, None, None] * inner * (smooth - centre)))


@keras.saving.register_keras_serializable(package="bloodcell_dist")
class RandomGaussianBlur(StatelessAugmentation):
    """Gaussian blur; KerasCV's layer darkens the edges, where this one reflects the picture."""

    parameter_draws = 1

    def __init__(self, kernel_size: int, factor: Range, **kwargs: Any) -> None:
        """
        Args:
            kernel_size: taps in each direction, odd.
            factor: (low, high) of the standard deviation in pixels; KerasCV takes v for (0, v).
        """
        super().__init__(**kwargs)
        self.kernel_size = kernel_size
        self.factor = as_range(factor, "factor")
        if kernel_size < 1 or kernel_size % 2 == 0:
            raise ValueError(f"kernel_size must be odd and positive, got {kernel_size}")
        if self.factor[0] < 0.0:
            raise ValueError(f"factor must be a pair of numbers >= 0, got {factor!r}")

    def apply(self, images: tf.Tensor, labels: tf.Tensor, draws: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        return gaussian_blur(images, in_range(draws[:, 0], self.factor), self.kernel_size), labels

    def get_config(self) -> dict[str, Any]:
        return {**super().get_config(), "kernel_size": self.kernel_size, "factor": self.factor}


@keras.saving.register_keras_serializable(package="bloodcell_dist")
class RandomSharpness(StatelessAugmentation):
    """Smooths or sharpens slightly; on [0, 1] as KerasCV's layer, which only smooths."""

    parameter_draws = 1

    def __init__(self, factor: Range, **kwargs: Any) -> None:
        """factor: 1 is smooth, 0 leaves the picture, below 0 sharpens; one number v means (-v, v)."""
        super().__init__(**kwargs)
        self.factor = as_range(factor, "factor")

    def apply(self, images: tf.Tensor, labels: tf.Tensor, draws: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        return adjust_sharpness(images, in_range(draws[:, 0], self.factor)), labels

    def get_config(self) -> dict[str, Any]:
        return {**super().get_config(), "factor": self.factor}
