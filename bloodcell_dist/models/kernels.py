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

from bloodcell_dist.models.depthwise import depthwise_conv2d, pads
from bloodcell_dist.models.folded import convolve_and_normalize, pays
from bloodcell_dist.models.normalize import normalize


class _Scope(threading.local):
    """Of this thread; tf.distribute traces each replica in a thread of its own."""

    def __init__(self) -> None:
        self.enter(False)

    def enter(self, active: bool) -> None:
        """With nothing known of any tensor."""
        self.active = active
        self.padded: dict[Any, tuple[tf.Tensor, tuple[tuple[int, int], ...]]] = {}  # to what was padded, and how
        self.convolved: dict[Any, tuple[tf.Tensor, tf.Tensor]] = {}  # to inputs and filters


_scope = _Scope()


@contextlib.contextmanager
def cpu_kernels(active: bool = True) -> Iterator[None]:
    """Let layers that are traced inside use the kernels below, if `active`."""
    before = dict(vars(_scope))
    _scope.enter(active)
    try:
        yield
    finally:
        vars(_scope).update(before)


def one_program(function: Callable[..., tf.Tensor]) -> Callable[..., tf.Tensor]:
    """A function of tensors compiled on its own inside the scope, as it is outside; no gradient is needed of it."""
    return tf.function(function, jit_compile=True, autograph=False) if _scope.active else function


class BatchNormalization(keras.layers.BatchNormalization):
    """Normalizes with the statistics of the batch in one operation, or together with the convolution before it."""

    def call(self, inputs: tf.Tensor, training: bool | None = None, mask: tf.Tensor | None = None) -> tf.Tensor:
        """float [B, H, W, C] as given; the moving statistics are left alone inside the scope."""
        fits = len(inputs.shape) == 4 and self.axis in (-1, 3) and self.scale and self.center
        if not (_scope.active and training and self.trainable and fits and mask is None):
            return super().call(inputs, training=training, mask=mask)
        gamma, beta = tf.convert_to_tensor(self.gamma), tf.convert_to_tensor(self.beta)
        if inputs.ref() in _scope.convolved:  # graphs drop the convolution when nothing else uses it
            return convolve_and_normalize(*_scope.convolved[inputs.ref()], gamma, beta, self.epsilon)
        return tf.cast(normalize(tf.cast(inputs, tf.float32), gamma, beta, self.epsilon), self.compute_dtype)


class ZeroPadding2D(keras.layers.ZeroPadding2D):
    """Tells a convolution that follows what it padded: nothing has to be copied where SAME padding is the same."""

    def call(self, inputs: tf.Tensor) -> tf.Tensor:
        """float [B, H, W, C] as given; graphs drop the operation when nothing uses it."""
        padded = super().call(inputs)
        if _scope.active:
            _scope.padded[padded.ref()] = (inputs, tuple(map(tuple, self.padding)))
        return padded


class Conv2D(keras.layers.Conv2D):
    """Convolutions of single places as matrix products, which oneDNN computes faster, in the gradients most of all."""

    def call(self, inputs: tf.Tensor) -> tf.Tensor:
        """float [B, H, W, C] as given."""
        if not (_scope.active and self.groups == 1 and _plain(self)):
            return super().call(inputs)
        kernel = tf.convert_to_tensor(self.kernel)
        if self.kernel_size == self.strides == (1, 1):
            rows = tf.matmul(tf.reshape(inputs, [-1, inputs.shape[-1]]), tf.reshape(kernel, kernel.shape[2:]))
            outputs = tf.reshape(rows, [-1, *inputs.shape[1:3], self.filters])
            if inputs.dtype == tf.float32 and pays(inputs.shape, self.filters):
                _scope.convolved[outputs.ref()] = inputs, kernel  # BatchNorm finds it if nothing is done to it before
        else:
            outputs = tf.nn.conv2d(*_before_padding(self, inputs, kernel))
        return _finished(self, outputs)


class DepthwiseConv2D(keras.layers.DepthwiseConv2D):
    """With the gradients of `depthwise.depthwise_conv2d`."""

    def call(self, inputs: tf.Tensor) -> tf.Tensor:
        """float [B, H, W, C] as given."""
        if not (_scope.active and self.depth_multiplier == 1 and _plain(self)):
            return super().call(inputs)
        return _finished(self, depthwise_conv2d(*_before_padding(self, inputs, tf.convert_to_tensor(self.kernel))))


class Activation(keras.layers.Activation):
    """GELU, SiLU and its hard form in one pass each way, compiled, instead of up to ten."""

    def call(self, inputs: tf.Tensor) -> tf.Tensor:
        """float as given, of any shape."""
        name = getattr(self.activation, "__name__", None)
        if not _scope.active or name not in ("gelu", "silu", "hard_silu"):
            return super().call(inputs)
        return _compiled(self.activation)(inputs)


_LAYERS = (BatchNormalization, ZeroPadding2D, Conv2D, DepthwiseConv2D, Activation)


def with_kernels(layer: Any) -> type[keras.layers.Layer]:
    """The class that takes a Keras layer's place in our networks."""
    return next((ours for ours in _LAYERS if type(layer) is ours.__bases__[0]), type(layer))


def without_kernels(layer: Any) -> type[keras.layers.Layer]:
    """The class of Keras for a layer of ours, its own for all others."""
    return type(layer).__bases__[0] if isinstance(layer, _LAYERS) else type(layer)


def _plain(layer: Any) -> bool:
    """Whether a convolution is square, without holes and on [B, H, W, C]."""
    square = len(set(layer.kernel_size)) == len(set(layer.strides)) == 1
    return square and set(layer.dilation_rate) == {1} and layer.data_format == "channels_last"


def _before_padding(layer: Any, inputs: tf.Tensor, kernel: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor, int, str]:
    """What a convolution has to do: inputs, filters, stride and padding."""
    size, stride, padding = layer.kernel_size[0], layer.strides[0], layer.padding.upper()
    given, padded = _scope.padded.get(inputs.ref(), (inputs, None))
    if padding == "VALID" and padded == tuple(pads(side, size, stride, "SAME") for side in given.shape[1:3]):
        return given, kernel, stride, "SAME"
    return inputs, kernel, stride, padding


def _finished(layer: Any, outputs: tf.Tensor) -> tf.Tensor:
    if layer.use_bias:
        outputs = tf.nn.bias_add(outputs, tf.convert_to_tensor(layer.bias))
    return outputs if layer.activation is None else layer.activation(outputs)


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
