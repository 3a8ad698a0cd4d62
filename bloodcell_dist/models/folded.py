"""A 1x1 convolution and the BatchNorm after it in training on CPUs, as one matrix product.

What BatchNorm has to know of the convolution's outputs follows from its inputs: where X are the inputs less their mean
and C is their covariance, the outputs of filter w have the variance w^T C w, and X (w / deviation) are those values
normalized. So nothing goes over the outputs again, neither for their statistics, nor to normalize them; of the
gradients' passes one is left. That pays where there are several times as many outputs as inputs, as in the inverted
residuals of MobileNets and EfficientNets (arXiv 1801.04381), and where they do not fit the caches.

The variance is exact to rounding of the largest variance among the inputs, not of itself: it matters for a filter that
cancels nearly all that its inputs do, and is small beside BatchNorm's epsilon.
"""

from __future__ import annotations

from collections.abc import Callable

import tensorflow as tf

MOST_INPUTS_SQUARED = 16
"""Per output channel, for the covariance is a product of the inputs with themselves; see `benchmarks/kernels.py`."""

LEAST_WIDENING = 3
"""Output channels per input channel: the inputs are what is gone over instead."""

FEWEST_OUTPUTS = 500_000
"""Numbers in all, 2 MB: with fewer, the dozen small operations take as long as BatchNorm."""


def pays(inputs: tf.TensorShape, features: int) -> bool:
    """Whether a 1x1 convolution of [B, H, W, C] to so many channels and its BatchNorm are faster in this way."""
    if inputs.num_elements() is None:
        return False
    channels, outputs = inputs[3], inputs.num_elements() // inputs[3] * features
    widens = LEAST_WIDENING * channels <= features and channels**2 <= MOST_INPUTS_SQUARED * features
    return widens and outputs >= FEWEST_OUTPUTS


def convolve_and_normalize(
    inputs: tf.Tensor, filters: tf.Tensor, scale: tf.Tensor, offset: tf.Tensor, epsilon: float
) -> tf.Tensor:
    """BatchNorm with the statistics of the batch (biased variance) of a 1x1 convolution without bias.

    Args:
        inputs: float32 [B, H, W, C], all known when traced.
        filters: float32 [1, 1, C, F].
        scale, offset: float32 [F].
        epsilon: added to the variance.

    Returns:
        float32 [B, H, W, F].
    """
    channels, features = filters.shape[2:]
    outputs = _normalized(
        tf.reshape(inputs, [-1, channels]), tf.reshape(filters, [channels, features]), scale, offset, epsilon
    )
    return tf.reshape(outputs, [*inputs.shape[:3], features])


def _normalized(rows: tf.Tensor, weights: tf.Tensor, scale: tf.Tensor, offset: tf.Tensor, epsilon: float) -> tf.Tensor:
    """The same of rows [N, C] and weights [C, F]: float32 [N, F]."""
    count = rows.shape[0]

    @tf.custom_gradient
    def normalized(
        rows: tf.Tensor, weights: tf.Tensor, scale: tf.Tensor, offset: tf.Tensor
    ) -> tuple[tf.Tensor, Callable[[tf.Tensor], tuple[tf.Tensor, ...]]]:
        centred = tf.nn.bias_add(rows, _column_sums(rows) / -count)
        spread = tf.matmul(tf.matmul(centred, centred, transpose_a=True), weights) / count  # [C, F]
        variance = tf.maximum(tf.reduce_sum(weights * spread, 0), 0.0)  # rounding must not make it negative
        by_deviation = tf.math.rsqrt(variance + epsilon)  # [F]
        factor = scale * by_deviation
        scaled = weights * factor

        def gradients(upstream: tf.Tensor) -> tuple[tf.Tensor, ...]:
            of_offset = _column_sums(upstream)
            of_scaled = tf.matmul(centred, upstream, transpose_a=True)
            of_factor = tf.reduce_sum(weights * of_scaled, 0)
            of_variance = tf.where(variance > 0, of_factor * factor * by_deviation**2, 0.0)  # times -2
            of_weights = of_scaled * factor - of_variance * spread
            of_covariance = tf.matmul(weights * (of_variance / -count), weights, transpose_b=True)
            of_mean = tf.linalg.matvec(scaled, of_offset / -count)
            of_rows = tf.matmul(upstream, scaled, transpose_b=True)
            of_rows += tf.nn.bias_add(tf.matmul(centred, of_covariance), of_mean)
            return of_rows, of_weights, of_factor * by_deviation, of_offset

        return tf.nn.bias_add(tf.matmul(centred, scaled), offset), gradients

    return normalized(rows, weights, scale, offset)


def _column_sums(rows: tf.Tensor) -> tf.Tensor:
    """By all threads in one pass, which `tf.reduce_sum` does not do."""
    return tf.raw_ops.BiasAddGrad(out_backprop=rows)
