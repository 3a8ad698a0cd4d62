"""Keras' layers with other kernels for training on CPUs: the same functions, up to rounding, in less time.

What TensorFlow runs for these layers on a CPU is slow where XLA does not compile the whole step, and XLA slows down
convolutions there. Measured per layer with `benchmarks/kernels.py`. The kernels are used inside a `cpu_kernels` scope
only: under XLA, on GPUs, in inference and in exported models the layers are Keras' own, by whose names they go.
"""

from __future__ import annotations

import contextlib
import functools
import threading
from collections.abc import Callable, Iterator
from typing import Any

import keras
import tensorflow as tf

from bloodcell_dist.models.depthwise import depthwise_conv2d


class _Scope(threading.local):
    """Of this thread; tf.distribute traces each replica in a thread of its own."""

    active: bool = False


_scope = _Scope()


@contextlib.contextmanager
def cpu_kernels(active: bool = True) -> Iterator[None]:
    """Let layers that are traced inside use the kernels below, if `active`."""
    before, _scope.active = _scope.active, active
    try:
        yield
    finally:
        _scope.active = before


class BatchNormalization(keras.layers.BatchNormalization):
    """Normalizes with the statistics of the batch in one operation instead of a dozen passes over the activations."""

    def call(self, inputs: tf.Tensor, training: bool | None = None, mask: tf.Tensor | None = None) -> tf.Tensor:
        """float [B, H, W, C] as given; the moving statistics are left alone inside the scope."""
        fits = len(inputs.shape) == 4 and self.axis in (-1, 3) and self.scale and self.center
        if not (_scope.active and training and self.trainable and fits and mask is None):
            return super().call(inputs, training=training, mask=mask)
        normalized, *_ = tf.raw_ops.FusedBatchNormV3(
            x=tf.cast(inputs, tf.float32),
            scale=tf.convert_to_tensor(self.gamma),
            offset=tf.convert_to_tensor(self.beta),
            mean=tf.zeros([0]),
            variance=tf.zeros([0]),
            epsilon=self.epsilon,
            is_training=True,
        )
        return tf.cast(normalized, self.compute_dtype)


class DepthwiseConv2D(keras.layers.DepthwiseConv2D):
    """With the gradients of `depthwise.depthwise_conv2d`."""

    def call(self, inputs: tf.Tensor) -> tf.Tensor:
        """float [B, H, W, C] as given."""
        square = len(set(self.strides)) == 1 and len(set(self.kernel_size)) == 1
        if not (_scope.active and square and self.depth_multiplier == 1 and set(self.dilation_rate) == {1}):
            return super().call(inputs)
        kernel = tf.convert_to_tensor(self.kernel)
        outputs = depthwise_conv2d(inputs, kernel, self.strides[0], self.padding.upper())
        if self.use_bias:
            outputs = tf.nn.bias_add(outputs, tf.convert_to_tensor(self.bias))
        return outputs if self.activation is None else self.activation(outputs)


class Activation(keras.layers.Activation):
    """GELU, SiLU and its hard form in one pass each way, compiled, instead of up to ten."""

    def call(self, inputs: tf.Tensor) -> tf.Tensor:
        """float as given, of any shape."""
        name = getattr(self.activation, "__name__", None)
        if not _scope.active or name not in ("gelu", "silu", "hard_silu"):
            return super().call(inputs)
        return _compiled(self.activation)(inputs)


_LAYERS = (BatchNormalization, DepthwiseConv2D, Activation)


def with_kernels(layer: Any) -> type[keras.layers.Layer]:
    """The class that takes a Keras layer's place in our networks."""
    return next((ours for ours in _LAYERS if type(layer) is ours.__bases__[0]), type(layer))


def without_kernels(layer: Any) -> type[keras.layers.Layer]:
    """The class of Keras for a layer of ours, its own for all others."""
    return type(layer).__bases__[0] if isinstance(layer, _LAYERS) else type(layer)


@functools.cache
def _compiled(activation: Callable[[tf.Tensor], tf.Tensor]) -> Callable[[tf.Tensor], tf.Tensor]:
    """A function of one tensor and its gradient, each one program; the gradient computes the function anew."""

    def pull_back(inputs: tf.Tensor, gradient: tf.Tensor) -> tf.Tensor:
        with tf.GradientTape() as tape:
            tape.watch(inputs)
            outputs = activation(inputs)
        return tape.gradient(outputs, inputs, gradient)

    forward = tf.function(activation, jit_compile=True, autograph=False)
    backward = tf.function(pull_back, jit_compile=True, autograph=False)
    return tf.custom_gradient(lambda inputs: (forward(inputs), lambda gradient: backward(inputs, gradient)))
