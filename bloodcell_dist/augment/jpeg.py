"""JPEG compression as arithmetic: what remains of a picture after libjpeg, without its entropy coding."""

from typing import Any

import keras
import numpy as np
import tensorflow as tf

from bloodcell_dist.augment.base import Range, StatelessAugmentation, as_range, in_range
from bloodcell_dist.augment.colour import clip
from bloodcell_dist.augment.layout import picture_size, settled

BLOCK = 8
_MCU = 2 * BLOCK  # a block of halved chroma covers 16 x 16 pixels

# The example tables of the standard (ITU-T T.81, annex K.1), which libjpeg scales by quality.
_LUMINANCE = """
16 11 10 16 24 40 51 61 12 12 14 19 26 58 60 55 14 13 16 24 40 57 69 56 14 17 22 29 51 87 80 62
18 22 37 56 68 109 103 77 24 35 55 64 81 104 113 92 49 64 78 87 103 121 120 101 72 92 95 98 112 100 103 99
"""
_CHROMINANCE = """
17 18 24 47 99 99 99 99 18 21 26 66 99 99 99 99 24 26 56 99 99 99 99 99 47 66 99 99 99 99 99 99
99 99 99 99 99 99 99 99 99 99 99 99 99 99 99 99 99 99 99 99 99 99 99 99 99 99 99 99 99 99 99 99
"""
TABLES = np.array([_LUMINANCE.split(), _CHROMINANCE.split()], np.float32)

_TO_YCC = np.array([[0.299, 0.587, 0.114], [-0.168736, -0.331264, 0.5], [0.5, -0.418688, -0.081312]], np.float32)
_FROM_YCC = np.array([[1.0, 0.0, 1.402], [1.0, -0.344136, -0.714136], [1.0, 1.772, 0.0]], np.float32)


def quantisation(quality: tf.Tensor) -> tf.Tensor:
    """Steps of luminance and chrominance, row by row: float32 [B] of 1 to 100 -> [B, 2, 64], by libjpeg's rule."""
    percent = tf.where(quality < 50.0, tf.floor(5000.0 / quality), 200.0 - 2.0 * quality)[:, None, None]
    return tf.clip_by_value(tf.floor((TABLES * percent + 50.0) / 100.0), 1.0, 255.0)


def compress(images: tf.Tensor, quality: tf.Tensor) -> tf.Tensor:
    """Pictures after JPEG compression with halved chroma, whole numbers; any size, padded by their edges.

    The steps are libjpeg's: conversion to YCbCr, means of 2 x 2 pixels of chroma, cosine transform of 8 x 8 blocks,
    rounding to multiples of the quantisation steps, and back, with chroma interpolated linearly. The transform is one
    product with a 64 x 64 matrix, which takes a CPU less time than to arrange the blocks. libjpeg computes in whole
    numbers, so a value half-way between two steps may go the other way. On GPUs with TensorFloat-32 products are
    rounded to 11 bits first, which is below a grey level.

    Args:
        images: float32 [B, H, W, 3] in [0, 255].
        quality: float32 [B], whole numbers from 1 to 100.
    """
    height, width = picture_size(images)
    y, x = (np.arange(-(-size // _MCU) * _MCU) for size in (height, width))
    # libjpeg repeats the last column of pixels, but the last row of halved chroma.
    chroma_y = np.minimum(2 * np.minimum(y // 2, (height - 1) // 2) + y % 2, height - 1)
    luminance = _luminance(_taken(images, np.minimum(y, height - 1), np.minimum(x, width - 1)))
    chroma = _chroma(_taken(images, chroma_y, np.minimum(x, width - 1)))
    steps = quantisation(quality)
    luminance = _lossy(luminance, steps[:, :1])
    chroma = _lossy(tf.reshape(chroma, [-1, *chroma.shape[2:]]), tf.repeat(steps[:, 1], 2, axis=0)[:, None])
    chroma = settled(tf.round(_doubled(chroma)) + 128.0) - 128.0
    chroma = tf.reshape(chroma, [-1, 2, len(y), len(x), 1])[:, :, :height, :width]
    luminance = luminance[:, :height, :width, None] + 128.0
    return clip(tf.round(luminance + chroma[:, 0] * _FROM_YCC[:, 1] + chroma[:, 1] * _FROM_YCC[:, 2]))


def _taken(images: tf.Tensor, y: np.ndarray, x: np.ndarray) -> tf.Tensor:
    """The rows y and columns x of pictures."""
    if (len(y), len(x)) == picture_size(images):
        return images
    return settled(tf.gather(tf.gather(images, y, axis=1), x, axis=2))


def _luminance(images: tf.Tensor) -> tf.Tensor:
    """Y less 128: float32 [B, H, W]."""
    channels = tf.unstack(images, axis=-1)
    total = tf.add_n([weight * channel for weight, channel in zip(_TO_YCC[0], channels, strict=True)])
    return settled(tf.round(total)) - 128.0


def _chroma(images: tf.Tensor) -> tf.Tensor:
    """Cb and Cr less 128, halved in both directions: float32 [B, 2, H / 2, W / 2]."""
    pairs = images[:, 0::2] + images[:, 1::2]
    red, green, blue = tf.unstack(settled(0.25 * (pairs[:, :, 0::2] + pairs[:, :, 1::2])), axis=-1)
    return tf.stack([tf.round(row[0] * red + row[1] * green + row[2] * blue) for row in _TO_YCC[1:]], axis=1)


def _lossy(planes: tf.Tensor, steps: tf.Tensor) -> tf.Tensor:
    """What rounding the coefficients leaves of planes about 0: float32 [N, H, W], steps [N, 1, 64] -> [N, H, W]."""
    _, height, width = planes.shape
    counts = (height // BLOCK, width // BLOCK)
    blocks = tf.transpose(tf.reshape(planes, [-1, counts[0], BLOCK, counts[1], BLOCK]), [0, 1, 3, 2, 4])
    coefficients = tf.matmul(tf.reshape(blocks, [-1, counts[0] * counts[1], BLOCK * BLOCK]), _TRANSFORM)
    kept = tf.matmul(tf.round(coefficients / steps) * steps, _TRANSFORM, transpose_b=True)
    blocks = tf.transpose(tf.reshape(kept, [-1, *counts, BLOCK, BLOCK]), [0, 1, 3, 2, 4])
    return settled(clip(tf.round(tf.reshape(blocks, [-1, height, width]) + 128.0))) - 128.0


def _cosines() -> np.ndarray:
    """The two-dimensional transform of a block, orthonormal: float32 [64 pixels, 64 coefficients], row by row."""
    frequency, place = np.mgrid[:BLOCK, :BLOCK]
    basis = np.cos((2 * place + 1) * frequency * np.pi / (2 * BLOCK)) * np.sqrt(2 / BLOCK)
    basis[0] /= np.sqrt(2)
    return np.einsum("uy,vx->yxuv", basis, basis).reshape(BLOCK**2, BLOCK**2).astype(np.float32)


_TRANSFORM = _cosines()


def _doubled(planes: tf.Tensor) -> tf.Tensor:
    """Twice as large in both directions by libjpeg's triangle filter: [N, H, W] -> [N, 2 * H, 2 * W].

    Each new value is 3/4 of the near and 1/4 of the far one. Along rows by a product, between rows by adding: either
    way round both would be slower.
    """
    _, height, width = planes.shape
    identity = np.eye(width, dtype=np.float32)
    near, far = _near_and_far(width)
    wide = tf.matmul(tf.reshape(planes, [-1, width]), 0.75 * identity[:, near] + 0.25 * identity[:, far])
    wide = tf.reshape(wide, [-1, height, 2 * width])
    near, far = _near_and_far(height)
    return 0.75 * tf.gather(wide, near, axis=1) + 0.25 * tf.gather(wide, far, axis=1)


def _near_and_far(size: int) -> tuple[np.ndarray, np.ndarray]:
    """Of each of 2 * size places, the old places that it lies nearest to and next to; the last ones at the edges."""
    places = np.arange(2 * size)
    return places // 2, np.clip(places // 2 + np.where(places % 2, 1, -1), 0, size - 1)


@keras.saving.register_keras_serializable(package="bloodcell_dist")
class RandomJpegQuality(StatelessAugmentation):
    """JPEG compression, as slide scanners and archives apply; see `compress`."""

    parameter_draws = 1

    def __init__(self, factor: Range, **kwargs: Any) -> None:
        """factor: (low, high) quality, 1 to 100; whole numbers from low to high, each as likely."""
        super().__init__(**kwargs)
        self.factor = as_range(factor, "factor")
        if self.factor[0] < 1.0 or self.factor[1] > 100.0:
            raise ValueError(f"factor must be a pair within [1, 100], got {factor!r}")

    def apply(self, images: tf.Tensor, labels: tf.Tensor, draws: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        low, high = self.factor
        return compress(images, tf.floor(in_range(draws[:, 0], (low, high + 1.0)))), labels

    def get_config(self) -> dict[str, Any]:
        return {**super().get_config(), "factor": self.factor}
