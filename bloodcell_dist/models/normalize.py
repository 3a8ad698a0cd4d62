"""Batch normalization in training on CPUs by oneDNN's operations, around the slow path of one of them.

oneDNN's forward operation takes 2 to 6 times as long where the channels do not fill the CPU's vectors: 18 ms instead of
3 for 64 maps of 24x24x72 with AVX-512. There, neighbouring places are taken together as one place with more channels,
which do (`benchmarks/kernels.py --norms`).
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import tensorflow as tf


def normalize(inputs: tf.Tensor, scale: tf.Tensor, offset: tf.Tensor, epsilon: float) -> tf.Tensor:
    """Each channel less its mean, by its standard deviation over the batch (biased), times scale, plus offset.

    Args:
        inputs: float32 [B, H, W, C], H, W and C known when traced; B too, or the slow path is taken.
        scale, offset: float32 [C].
        epsilon: added to the variance.
    """
    together = _floats_per_vector() // math.gcd(inputs.shape[-1], _floats_per_vector())
    if together == 1 or inputs.shape[0] is None or inputs.shape[0] % together:
        return tf.raw_ops.FusedBatchNormV3(x=inputs, scale=scale, offset=offset, **_training(epsilon)).y

    @tf.custom_gradient
    def normalized(
        inputs: tf.Tensor, scale: tf.Tensor, offset: tf.Tensor
    ) -> tuple[tf.Tensor, Callable[[tf.Tensor], tuple[tf.Tensor, tf.Tensor, tf.Tensor]]]:
        outputs, mean, variance = _places_together(inputs, scale, offset, epsilon, together)

        def gradients(upstream: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
            found = tf.raw_ops.FusedBatchNormGradV3(
                y_backprop=upstream,
                x=inputs,
                scale=scale,
                reserve_space_1=mean,
                reserve_space_2=variance,
                reserve_space_3=tf.zeros([0]),
                epsilon=epsilon,
                is_training=True,
            )
            return found.x_backprop, found.scale_backprop, found.offset_backprop

        return outputs, gradients

    return normalized(inputs, scale, offset)


def _places_together(
    inputs: tf.Tensor, scale: tf.Tensor, offset: tf.Tensor, epsilon: float, together: int
) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
    """The normalized values, mean and variance, from those of places that lie `together` apart."""
    count, height, width, channels = inputs.shape
    folded = tf.reshape(inputs, [count // together, height, width, together * channels])
    scales, offsets = tf.tile(scale, [together]), tf.tile(offset, [together])
    found = tf.raw_ops.FusedBatchNormV3(x=folded, scale=scales, offset=offsets, **_training(epsilon))
    means, variances = (tf.reshape(of, [together, channels]) for of in (found.reserve_space_1, found.reserve_space_2))
    mean = tf.reduce_mean(means, 0)
    variance = tf.reduce_mean(variances + (means - mean) ** 2, 0)  # within and between
    outputs = tf.raw_ops.FusedBatchNormV3(
        x=folded,
        scale=scales,
        offset=offsets,
        mean=tf.tile(mean, [together]),
        variance=tf.tile(variance, [together]),
        epsilon=epsilon,
        is_training=False,
    ).y
    return tf.reshape(outputs, inputs.shape), mean, variance


def _training(epsilon: float) -> dict[str, Any]:
    return {"mean": tf.zeros([0]), "variance": tf.zeros([0]), "epsilon": epsilon, "is_training": True}


@functools.cache
def _floats_per_vector() -> int:
    """Float32 numbers in the widest vector of this CPU that oneDNN uses."""
    try:
        return 16 if " avx512f " in Path("/proc/cpuinfo").read_text() else 8
    except OSError:
        return 8
