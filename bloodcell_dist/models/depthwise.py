"""Depthwise convolution on CPUs, with a gradient of its filter that does not take longer than all the rest.

With oneDNN, TensorFlow's operation for it takes 3 to 24 ms for the 5x5 and 7x7 filters of our networks where the other
two directions take 0.3 to 1.5 ms each. Which of these is fastest where was measured, see `benchmarks/kernels.py`:

- 3x3 filters: TensorFlow's operation as it is;
- larger ones on maps of at most 36 places at stride 1: products of all pairs of places, a matrix product per channel,
  then the sum of those pairs that a filter's tap joins, another matrix product;
- else: the same operation with explicit padding, which oneDNN leaves to TensorFlow's own kernel.
"""

from __future__ import annotations

import functools
from collections.abc import Callable

import numpy as np
import tensorflow as tf

MOST_PLACES = 36
SMALLEST_SLOW_FILTER = 5


def depthwise_conv2d(inputs: tf.Tensor, filters: tf.Tensor, stride: int, padding: str) -> tf.Tensor:
    """As `tf.nn.depthwise_conv2d`, for square filters and one filter per channel.

    Args:
        inputs: float [B, H, W, C], H, W and C known when traced.
        filters: float [k, k, C, 1].
        stride: in both directions.
        padding: SAME or VALID.
    """
    shape, strides = filters.shape, [1, stride, stride, 1]

    @tf.custom_gradient
    def convolve(inputs: tf.Tensor, filters: tf.Tensor) -> tuple[tf.Tensor, Callable[..., tuple[tf.Tensor, tf.Tensor]]]:
        outputs = tf.raw_ops.DepthwiseConv2dNative(input=inputs, filter=filters, strides=strides, padding=padding)

        def gradients(upstream: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
            of_inputs = tf.raw_ops.DepthwiseConv2dNativeBackpropInput(
                input_sizes=tf.shape(inputs), filter=filters, out_backprop=upstream, strides=strides, padding=padding
            )
            return of_inputs, filter_gradient(inputs, upstream, shape[0], stride, padding)

        return outputs, gradients

    return convolve(inputs, filters)


def filter_gradient(inputs: tf.Tensor, upstream: tf.Tensor, size: int, stride: int, padding: str) -> tf.Tensor:
    """Gradient of the filters, float [size, size, C, 1]; upstream: of the outputs, [B, h, w, C]."""
    height, width, channels = inputs.shape[1:]
    slow = size >= SMALLEST_SLOW_FILTER
    if slow and stride == 1 and height * width <= MOST_PLACES and inputs.dtype == tf.float32:
        return _by_pairs(inputs, upstream, size, padding)
    around = [0, 0, *pads(height, size, stride, padding), *pads(width, size, stride, padding), 0, 0]
    return tf.raw_ops.DepthwiseConv2dNativeBackpropFilter(
        input=inputs,
        filter_sizes=[size, size, channels, 1],
        out_backprop=upstream,
        strides=[1, stride, stride, 1],
        padding="EXPLICIT" if slow else padding,
        explicit_paddings=around if slow else [],
    )


def _by_pairs(inputs: tf.Tensor, upstream: tf.Tensor, size: int, padding: str) -> tf.Tensor:
    """By matrix products: channel by channel over the batch, then of pairs of places with the taps that join them."""
    (height, width, channels), (out_height, out_width) = inputs.shape[1:], upstream.shape[1:3]
    taps = _joined(height, width, out_height, out_width, size, padding)
    places = tf.transpose(tf.reshape(inputs, [-1, height * width, channels]), [2, 1, 0])  # [C, HW, B]
    out_places = tf.transpose(tf.reshape(upstream, [-1, out_height * out_width, channels]), [2, 0, 1])  # [C, B, hw]
    pairs = tf.reshape(tf.matmul(places, out_places), [channels, -1])
    return tf.reshape(tf.transpose(tf.matmul(pairs, tf.constant(taps))), [size, size, channels, 1])


@functools.cache
def _joined(height: int, width: int, out_height: int, out_width: int, size: int, padding: str) -> np.ndarray:
    """float32 [HW x hw, size x size]: 1 where a tap of the filter joins a place of the input and one of the output."""
    top, left = pads(height, size, 1, padding)[0], pads(width, size, 1, padding)[0]
    taps = np.arange(size)
    rows = (np.arange(height)[:, None, None] + top - np.arange(out_height)[:, None]) == taps  # [H, h, size]
    columns = (np.arange(width)[:, None, None] + left - np.arange(out_width)[:, None]) == taps  # [W, w, size]
    joined = rows[:, None, :, None, :, None] & columns[None, :, None, :, None, :]  # [H, W, h, w, size, size]
    return joined.reshape(height * width * out_height * out_width, size * size).astype(np.float32)


def pads(length: int, size: int, stride: int, padding: str) -> tuple[int, int]:
    """What is added before and after."""
    if padding == "VALID":
        return 0, 0
    outputs = -(-length // stride)
    total = max((outputs - 1) * stride + size - length, 0)
    return total // 2, total - total // 2
