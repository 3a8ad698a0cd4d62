"""What a network costs: operations of a forward pass, memory to train; both from its layers' shapes alone.

For flat Functional models of fixed picture size, channels last, each layer called once. Their weights need no values,
see `without_values`.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import keras

_FLOAT32 = 4  # bytes
_NORMS = (keras.layers.BatchNormalization, keras.layers.LayerNormalization)

# Tensors of the input's size that TensorFlow keeps inside a layer beyond its input, read from the formulas:
# gelu(x) = 0.5x (1 + erf(x/sqrt 2)) keeps three of its parts in place of x, hard_silu(x) = x relu6(x + 3) / 6 two.
_KEPT_INSIDE = {"gelu": 2, "hard_silu": 2}
_KEPT_INSIDE_LAYER_NORM = 1  # the reciprocal deviation times gamma, spread over all channels


@contextmanager
def without_values() -> Iterator[None]:
    """Networks built inside have shapes, but their weights no values: ConvNeXtBase is there in 0.5 s, not in 4 to 10 s.

    Keras' global state is new afterwards, save for the precision policy; otherwise Keras would draw those values when
    it builds its next network.
    """
    policy = keras.config.dtype_policy()
    try:
        with keras.StatelessScope(initialize_variables=False):
            yield
    finally:
        keras.utils.clear_session()
        keras.config.set_dtype_policy(policy)


def forward_flops(model: keras.Model) -> int:
    """Floating-point operations to classify one picture; a multiplication with its addition counts as two.

    Convolutions and dense layers are counted, nothing else, as papers on these networks do. On what it counts it
    agrees with TensorFlow's profiler to the digit; all that the profiler finds, element-wise operations included, is
    5.6% more for MobileNetV3Small and 4.1% more for EfficientNetB0, both at 96 pixels.
    """
    return 2 * sum(_multiply_adds(layer) for layer in model.operations)


def activation_bytes(model: keras.Model, bytes_per_value: int) -> int:
    """What a training step keeps of one picture from the forward pass for the backward pass, bytes.

    Args:
        model: the network; its frozen layers keep less.
        bytes_per_value: 4 for float32, 2 for the 16-bit types. What normalization layers keep is float32 in any case,
            since Keras makes them compute in it.
    """
    kept: dict[tuple[int, int], int] = {}  # a tensor that two layers want in the same type is kept once
    inside = 0
    for layer in model.operations:
        width = _FLOAT32 if isinstance(layer, _NORMS) else bytes_per_value
        kept |= {(id(tensor), width): width * _size(tensor) for tensor in _kept_tensors(layer)}
        inside += width * _kept_inside(layer)
    return sum(kept.values()) + inside


def training_bytes(model: keras.Model, *, batch_size: int, bytes_per_value: int, weight_copies: int = 4) -> int:
    """Estimated memory of a training step at its peak, bytes per replica.

    Weights, gradients and optimizer state; what the forward pass keeps; and the gradients of the largest activation,
    before and after its layer. The runtime, the training pictures, augmentation and the work space of convolutions
    come on top.

    How far off: what one gradient adds to the resident memory of a process on a CPU, MiB per picture at 96 pixels, from
    the difference between two batch sizes:

                            float32: plain   XLA   estimated    mixed_bfloat16: plain   estimated
        cnn                            8.0  10.6         7.1
        MobileNetV3Small               4.3   5.1         4.6                      2.8         2.9
        EfficientNetB0                18.2  17.2        17.5                     11.2        12.0
        EfficientNetV2S               28.7              28.1
        ConvNeXtBase                  76.6  67          73.1

    All that EfficientNetB0's gradient adds for 32 pictures in float32 was 600 to 665 MiB in five runs and 984 in
    another, on a busy machine; 576 estimated.
    Not measured: other sizes of pictures, the copies of the weights, and anything on a GPU.

    Args:
        model: the network.
        batch_size: examples per replica and pass.
        bytes_per_value: of the compute type.
        weight_copies: float32 copies of each trained weight: itself, its gradient, Lion's momentum and its average.
    """
    trained = sum(math.prod(variable.shape) for variable in model.trainable_variables)
    fixed = sum(math.prod(variable.shape) for variable in model.non_trainable_variables)
    casts = bytes_per_value * trained if bytes_per_value < _FLOAT32 else 0
    weights = _FLOAT32 * (weight_copies * trained + fixed) + casts
    largest = max(_size(layer.output) for layer in model.operations)
    return weights + batch_size * (activation_bytes(model, bytes_per_value) + 2 * _FLOAT32 * largest)


def _multiply_adds(layer: Any) -> int:
    if isinstance(layer, keras.layers.DepthwiseConv2D):
        return _size(layer.output) * math.prod(layer.kernel_size)
    if isinstance(layer, keras.layers.Conv2D):
        return _size(layer.output) * math.prod(layer.kernel_size) * layer.input.shape[-1] // layer.groups
    if isinstance(layer, keras.layers.Dense):
        return _size(layer.output) * layer.input.shape[-1]
    return 0


def _kept_tensors(layer: Any) -> Iterator[keras.KerasTensor]:
    """Inputs and outputs without which the layer's gradients cannot be computed; adding and padding need none."""
    needs_inputs = (keras.layers.Activation, keras.layers.MaxPooling2D, keras.layers.Multiply)
    if isinstance(layer, needs_inputs) or getattr(layer, "trainable_weights", None):
        yield from layer.input if isinstance(layer.input, list) else [layer.input]
    if isinstance(layer, (keras.layers.ReLU, keras.layers.MaxPooling2D)):
        yield layer.output


def _kept_inside(layer: Any) -> int:
    """Values that a layer keeps of its own for one picture."""
    if isinstance(layer, keras.layers.LayerNormalization):
        return _KEPT_INSIDE_LAYER_NORM * _size(layer.output)
    if isinstance(layer, keras.layers.Activation):
        return _KEPT_INSIDE.get(layer.activation.__name__, 0) * _size(layer.output)
    return 0


def _size(tensor: keras.KerasTensor) -> int:
    """Values of one picture."""
    return math.prod(tensor.shape[1:])
