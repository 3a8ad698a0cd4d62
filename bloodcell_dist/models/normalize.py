"""Batch normalization in training on CPUs, as one operation each way.

oneDNN's forward operation takes 2 to 6 times as long where the channels do not fill the CPU's vectors: 18 ms instead of
3 for 64 maps of 24x24x72 with AVX-512. TensorFlow's own kernel takes half of that; it is what runs in five dimensions.
For the gradient oneDNN's is the faster one everywhere (`benchmarks/kernels.py --norms`).
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from pathlib import Path

import tensorflow as tf


def normalize(inputs: tf.Tensor, scale: tf.Tensor, offset: tf.Tensor, epsilon: float) -> tf.Tensor:
    """Each channel less its mean, by its standard deviation over the batch (biased), times scale, plus offset.

    Args:
        inputs: float32 [B, H, W, C], C known when traced.
        scale, offset: float32 [C].
        epsilon: added to the variance.
    """
    if inputs.shape[-1] % _floats_per_vector() == 0:
        return _batchnorm(inputs, scale, offset, epsilon, "NHWC")[0]

    @tf.custom_gradient
    def normalized(
        inputs: tf.Tensor, scale: tf.Tensor, offset: tf.Tensor
    ) -> tuple[tf.Tensor, Callable[[tf.Tensor], tuple[tf.Tensor, tf.Tensor, tf.Tensor]]]:
        outputs, mean, variance = _batchnorm(inputs[:, tf.newaxis], scale, offset, epsilon, "NDHWC")

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

        return outputs[:, 0], gradients

    return normalized(inputs, scale, offset)


def _batchnorm(
    inputs: tf.Tensor, scale: tf.Tensor, offset: tf.Tensor, epsilon: float, layout: str
) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
    """The normalized values, and the mean and variance that the gradient needs."""
    found = tf.raw_ops.FusedBatchNormV3(
        x=inputs,
        scale=scale,
        offset=offset,
        mean=tf.zeros([0]),
        variance=tf.zeros([0]),
        epsilon=epsilon,
        is_training=True,
        data_format=layout,
    )
    return found.y, found.reserve_space_1, found.reserve_space_2


@functools.cache
def _floats_per_vector() -> int:
    """Float32 numbers in the widest vector of this CPU that oneDNN uses."""
    try:
        return 16 if " avx512f " in Path("/proc/cpuinfo").read_text() else 8
    except OSError:
        return 8
