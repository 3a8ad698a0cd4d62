"""The CPU kernels compute what Keras' layers compute, forwards and backwards, and only where they are asked to."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf

from bloodcell_dist.models import folded, kernels
from bloodcell_dist.models.backbones import build_classifier
from bloodcell_dist.models.depthwise import depthwise_conv2d
from bloodcell_dist.models.kernels import cpu_kernels, with_kernels, without_kernels
from bloodcell_dist.serving.export import plain_copy

Found = dict[str, np.ndarray]


def gradients(function: Callable[..., tf.Tensor], *arguments: Any) -> list[np.ndarray]:
    """The function's value, and the gradients of a sum over it."""
    tensors = [tf.constant(argument) for argument in arguments]

    def both() -> list[tf.Tensor]:
        with tf.GradientTape() as tape:
            tape.watch(tensors)
            value = function(*tensors)
            total = tf.reduce_sum(tf.sin(tf.cast(value, tf.float32)))  # every value gets another gradient
        return [value, *tape.gradient(total, tensors)]

    return [np.asarray(tf.cast(found, tf.float32)) for found in tf.function(both, autograph=False)()]


def agree(found: list[np.ndarray], expected: list[np.ndarray], tolerance: float) -> None:
    for one, other in zip(found, expected, strict=True):
        assert one.shape == other.shape
        np.testing.assert_allclose(one, other, rtol=0, atol=tolerance * np.abs(other).max())


@pytest.fixture
def random() -> np.random.Generator:
    """Draws that do not depend on which tests ran before: how far rounding shows depends on them."""
    return np.random.default_rng(0)


SHAPES = [  # side of the filter, stride, height, width
    *[(3, 1, 9, 9), (3, 2, 9, 8), (5, 1, 9, 9), (5, 2, 9, 8), (7, 1, 12, 12), (7, 1, 9, 7)],
    *[(5, 1, 6, 6), (7, 1, 6, 6), (5, 1, 5, 7), (7, 1, 3, 3), (5, 1, 2, 6), (5, 2, 6, 6)],  # small maps
]


@pytest.mark.parametrize(
    ("size", "stride", "height", "width", "padding"),
    [(*shape, "SAME") for shape in SHAPES] + [(*shape, "VALID") for shape in SHAPES if min(shape[2:]) >= shape[0]],
)
def test_depthwise_convolutions_have_the_gradients_of_tensorflow(
    size: int, stride: int, height: int, width: int, padding: str, random: np.random.Generator
) -> None:
    inputs = random.normal(size=(4, height, width, 6)).astype(np.float32)
    filters = random.normal(size=(size, size, 6, 1)).astype(np.float32)
    strides = [1, stride, stride, 1]
    expected = gradients(lambda x, w: tf.nn.depthwise_conv2d(x, w, strides, padding), inputs, filters)
    agree(gradients(lambda x, w: depthwise_conv2d(x, w, stride, padding), inputs, filters), expected, 2e-6)


@pytest.mark.parametrize("name", ["gelu", "silu", "hard_silu"])
def test_activations_have_the_gradients_of_keras(name: str, random: np.random.Generator) -> None:
    inputs = np.concatenate([random.normal(size=200, scale=3), [-3.0, 3.0, 0.0, -40.0, 40.0]]).astype(np.float32)
    layer = kernels.Activation(name)
    expected = gradients(layer, inputs)
    with cpu_kernels():
        agree(gradients(layer, inputs), expected, 1e-6)


CONVOLUTIONS = {
    "of single places": keras.layers.Conv2D(5, 1, name="conv"),
    "of single places, no bias, ReLU": keras.layers.Conv2D(5, 1, use_bias=False, activation="relu", name="conv"),
    "of single places, stride 2": keras.layers.Conv2D(5, 1, strides=2, name="conv"),
    "3x3": keras.layers.Conv2D(5, 3, padding="same", name="conv"),
    "grouped": keras.layers.Conv2D(6, 3, groups=3, name="conv"),
    "with holes": keras.layers.Conv2D(5, 3, dilation_rate=2, name="conv"),
    "not square": keras.layers.Conv2D(5, (1, 3), name="conv"),
    "depthwise": keras.layers.DepthwiseConv2D(3, strides=2, activation="relu", name="conv"),
    "depthwise, twice the channels": keras.layers.DepthwiseConv2D(3, depth_multiplier=2, name="conv"),
}


@pytest.mark.parametrize("kind", CONVOLUTIONS)
@pytest.mark.parametrize("padding", [None, ((0, 1), (0, 1)), ((1, 1), (1, 1))])
def test_convolutions_have_the_gradients_of_keras(
    kind: str, padding: tuple[tuple[int, int], ...] | None, random: np.random.Generator
) -> None:
    inputs = random.normal(size=(4, 8, 8, 6)).astype(np.float32)
    stock = [CONVOLUTIONS[kind]] if padding is None else [keras.layers.ZeroPadding2D(padding), CONVOLUTIONS[kind]]
    layers = [with_kernels(layer).from_config(layer.get_config()) for layer in stock]

    def call(inputs: tf.Tensor, *weights: tf.Tensor) -> tf.Tensor:
        with keras.StatelessScope(list(zip(layers[-1].trainable_variables, weights, strict=True))):
            return keras.Sequential(layers)(inputs, training=True)

    keras.Sequential(layers)(inputs)
    weights = [random.normal(size=variable.shape).astype(np.float32) for variable in layers[-1].trainable_variables]
    expected = gradients(call, inputs, *weights)
    with cpu_kernels():
        agree(gradients(call, inputs, *weights), expected, 2e-6)


@pytest.mark.parametrize(
    ("size", "stride", "padding", "copied"),
    [(3, 2, ((0, 1), (0, 1)), False), (5, 2, ((1, 2), (1, 2)), False), (3, 2, ((1, 1), (1, 1)), True)],
)
@pytest.mark.parametrize("convolution", [keras.layers.Conv2D, keras.layers.DepthwiseConv2D])
def test_padding_that_same_padding_is_too_copies_nothing(
    convolution: Any, size: int, stride: int, padding: tuple[tuple[int, int], ...], copied: bool
) -> None:
    features = {"filters": 4} if convolution is keras.layers.Conv2D else {}
    stock = [keras.layers.ZeroPadding2D(padding), convolution(kernel_size=size, strides=stride, **features)]
    network = keras.Sequential([with_kernels(layer).from_config(layer.get_config()) for layer in stock])
    network.build((None, 8, 8, 4))
    assert ("Pad" in inputs_of_convolution(network)) is copied


def inputs_of_convolution(network: Callable[[tf.Tensor], tf.Tensor]) -> set[str]:
    """The operations whose results it takes, traced in a scope."""
    with cpu_kernels(), keras.StatelessScope():
        graph = tf.function(network, autograph=False).get_concrete_function(tf.zeros([2, 8, 8, 4])).graph
    found = [operation for operation in graph.get_operations() if operation.type.endswith(("Conv2D", "Conv2dNative"))]
    return {tensor.op.type for operation in found for tensor in operation.inputs}


def test_a_scope_within_a_scope_leaves_the_outer_one_its_padding() -> None:
    padding = with_kernels(keras.layers.ZeroPadding2D()).from_config({"padding": ((0, 1), (0, 1))})
    convolution = with_kernels(keras.layers.Conv2D(4, 3)).from_config({"filters": 4, "kernel_size": 3, "strides": 2})
    convolution.build((None, 9, 9, 4))

    def network(inputs: tf.Tensor) -> tf.Tensor:
        padded = padding(inputs)
        with cpu_kernels(False):
            pass
        return convolution(padded)

    assert "Pad" not in inputs_of_convolution(network)


@pytest.mark.parametrize("channels", [6, 8, 16, 24, 32])  # some fill the CPU's vectors, some do not
@pytest.mark.parametrize("dtype", ["float32", "mixed_bfloat16"])
def test_batchnorm_has_the_gradients_of_keras(dtype: str, channels: int, random: np.random.Generator) -> None:
    inputs = (5.0 + 3.0 * random.normal(size=(8, 5, 5, channels))).astype(np.float32)
    layer = kernels.BatchNormalization(dtype=dtype)
    layer.build(inputs.shape)
    statistics = [np.zeros(channels), np.ones(channels)]
    layer.set_weights([random.uniform(0.5, 1.5, channels), random.normal(size=channels), *statistics])

    def call(inputs: tf.Tensor, *weights: tf.Tensor) -> tf.Tensor:
        with keras.StatelessScope(list(zip([layer.gamma, layer.beta], weights, strict=True))):
            return layer(inputs, training=True)

    weights = layer.get_weights()[:2]
    expected = gradients(call, inputs, *weights)
    with cpu_kernels():
        agree(gradients(call, inputs, *weights), expected, 5e-6 if dtype == "float32" else 2e-2)


@pytest.mark.parametrize("kind", ["inference", "frozen", "outside"])
def test_batchnorm_is_keras_own_where_no_batch_counts(kind: str, random: np.random.Generator) -> None:
    layer = kernels.BatchNormalization()
    layer.build((None, 4, 4, 3))
    layer.trainable = kind != "frozen"
    inputs = random.normal(size=(2, 4, 4, 3)).astype(np.float32)

    def operations() -> set[str]:
        with cpu_kernels(kind != "outside"), keras.StatelessScope():
            call = tf.function(lambda x: layer(x, training=kind != "inference"), autograph=False)
            graph = call.get_concrete_function(tf.constant(inputs)).graph
        return {operation.type for operation in graph.get_operations()}

    assert "FusedBatchNormV3" not in operations()


class Pair:
    """A 1x1 convolution of 6 channels and the BatchNorm after it, with weights of their own."""

    def __init__(
        self, random: np.random.Generator, trainable: bool = True, dtype: str = "float32", **convolution: Any
    ) -> None:
        given = {"filters": 20, "kernel_size": 1, "use_bias": False, **convolution}
        self.convolution = kernels.Conv2D(**given, dtype=dtype)
        self.norm = kernels.BatchNormalization(trainable=trainable, dtype=dtype)
        self.convolution.build((None, 5, 4, 6))
        self.norm.build((None, 5, 4, 20))
        self.variables = [*self.convolution.trainable_variables, self.norm.gamma, self.norm.beta]
        self.weights = [random.normal(size=variable.shape).astype(np.float32) for variable in self.variables]

    def __call__(self, inputs: tf.Tensor, *weights: tf.Tensor, also: float = 0.0) -> tf.Tensor:
        with keras.StatelessScope(list(zip(self.variables, weights, strict=True))):
            outputs = self.convolution(inputs)
            return self.norm(outputs, training=True) + also * outputs

    def operations(self, inputs: np.ndarray) -> set[str]:
        call = tf.function(lambda inputs: self(inputs, *self.weights), autograph=False)
        with cpu_kernels():
            return {found.type for found in call.get_concrete_function(tf.constant(inputs)).graph.get_operations()}


@pytest.fixture
def small_ones_too(monkeypatch: pytest.MonkeyPatch) -> None:
    """Any 1x1 convolution to enough channels is computed together with its BatchNorm."""
    monkeypatch.setattr(folded, "FEWEST_OUTPUTS", 0)


@pytest.mark.parametrize("also", [0.0, 1.5])  # what the convolution gives is used otherwise too
@pytest.mark.parametrize("mean", [0.0, 5.0])
def test_a_convolution_with_its_batchnorm_has_the_gradients_of_keras(
    mean: float, also: float, random: np.random.Generator, small_ones_too: None
) -> None:
    pair = Pair(random)
    mixed = random.normal(size=(8, 5, 4, 6)) @ random.normal(size=(6, 6)) + mean
    inputs = mixed.astype(np.float32)
    assert "FusedBatchNormV3" not in pair.operations(inputs)
    expected = gradients(lambda *given: pair(*given, also=also), inputs, *pair.weights)
    with cpu_kernels():
        agree(gradients(lambda *given: pair(*given, also=also), inputs, *pair.weights), expected, 1e-5)


def test_rounding_makes_no_variance_negative(random: np.random.Generator, small_ones_too: None) -> None:
    """What six inputs have in common is large, and no filter sees it: all that is left of it is rounding."""
    pair = Pair(random)
    pair.weights[0] -= pair.weights[0].mean(2, keepdims=True)
    common = 1e5 * random.normal(size=(8, 5, 4, 1))
    inputs = (common + random.normal(size=(8, 5, 4, 6))).astype(np.float32)
    with cpu_kernels():
        assert all(np.isfinite(found).all() for found in gradients(pair, inputs, *pair.weights))


@pytest.mark.parametrize(
    ("expected", "kind"),
    [
        ("FusedBatchNormV3", {"use_bias": True}),
        ("FusedBatchNormV3", {"activation": "relu"}),
        ("FusedBatchNormV3", {"kernel_size": 3, "padding": "same"}),
        ("FusedBatchNormV3", {"dtype": "mixed_bfloat16"}),
        ("Rsqrt", {"trainable": False}),  # of the moving statistics
    ],
)
def test_only_a_bare_1x1_convolution_is_computed_with_a_batchnorm_that_trains(
    expected: str, kind: dict[str, Any], random: np.random.Generator, small_ones_too: None
) -> None:
    pair = Pair(random, **kind)
    inputs = random.normal(size=(8, 5, 4, 6)).astype(np.float32)
    found = pair.operations(inputs)
    assert expected in found
    assert "BiasAddGrad" not in found  # the sums of columns that the product of both begins with


@pytest.mark.parametrize(
    ("shape", "features", "expected"),
    [
        ((64, 24, 24, 16), 72, True),
        ((64, 3, 3, 96), 576, False),  # too few
        ((None, 24, 24, 16), 72, False),
        ((64, 24, 24, 72), 24, False),
        ((64, 24, 24, 16), 16, False),  # no more of them than there were
        ((16, 12, 12, 64), 256, True),
        ((32, 6, 6, 112), 672, False),  # the covariance would take longer
        ((16, 12, 12, 512), 3072, False),
    ],
)
def test_few_outputs_or_many_inputs_are_normalized_apart(
    shape: tuple[int | None, ...], features: int, expected: bool
) -> None:
    assert folded.pays(tf.TensorShape(shape), features) is expected


BACKBONES = ["cnn", "mobilenetv3small", "efficientnetb0", "convnextbase"]
FOLDED = {"mobilenetv3small": 11, "efficientnetb0": 8}
"""How many of their 1x1 convolutions are computed together with their BatchNorm, of maps large enough."""


@pytest.mark.slow
@pytest.mark.parametrize("backbone", BACKBONES)
def test_whole_networks_have_the_same_gradients(backbone: str, fill: Callable[..., None], small_ones_too: None) -> None:
    size = 32 if backbone == "convnextbase" else 64
    model = build_classifier(backbone, image_size=size, num_classes=8, dropout=0.0, seed=0)
    if backbone == "convnextbase":
        fill(model)  # the initial LayerScale hides what the blocks do
    # Draws of its own: among some, one in five, rounding decides which of two values max pooling or ReLU lets through.
    pictures = np.random.default_rng(0).uniform(0, 255, (4, size, size, 3)).astype(np.float32)
    weights = [variable.value for variable in model.trainable_variables]

    def found(active: bool) -> tuple[np.ndarray, np.ndarray, list[str]]:
        def both() -> tuple[tf.Tensor, list[tf.Tensor]]:
            with cpu_kernels(active), tf.GradientTape() as tape, keras.StatelessScope():
                logits = model(pictures, training=True)
                loss = tf.reduce_sum(logits * tf.range(8.0))
            return logits, tape.gradient(loss, weights)

        function = tf.function(both, autograph=False)
        kinds = [operation.type for operation in function.get_concrete_function().graph.get_operations()]
        logits, tensors = function()
        return logits.numpy(), np.concatenate([tensor.numpy().ravel() for tensor in tensors]), kinds

    logits, flat, kinds = found(active=True)
    expected_logits, expected_flat, stock_kinds = found(active=False)
    assert set(kinds) - set(stock_kinds)  # other operations did the work
    if backbone in FOLDED:  # those that widen normalize as well
        norms = sum(isinstance(layer, keras.layers.BatchNormalization) for layer in model.layers)
        assert norms - kinds.count("FusedBatchNormGradV3") == FOLDED[backbone]
    np.testing.assert_allclose(logits, expected_logits, rtol=0, atol=1e-4 * np.abs(expected_logits).max())
    assert np.linalg.norm(flat - expected_flat) < 2e-4 * np.linalg.norm(expected_flat)


def test_every_layer_of_a_network_goes_by_keras_names_and_leaves_with_the_export() -> None:
    model = build_classifier("mobilenetv3small", image_size=32, num_classes=8, dropout=0.2, seed=0)
    ours = [layer for layer in model.layers if type(layer).__module__ == kernels.__name__]
    names = {"BatchNormalization", "ZeroPadding2D", "Conv2D", "DepthwiseConv2D", "Activation"}
    assert {type(layer).__name__ for layer in ours} == names
    assert all(type(layer).__name__ == type(layer).__bases__[0].__name__ for layer in ours)
    exported = {type(layer).__module__.split(".")[0] for layer in plain_copy(model).layers}
    assert exported == {"keras"}


def test_only_the_layers_named_are_replaced() -> None:
    assert with_kernels(keras.layers.Activation("gelu")) is kernels.Activation
    assert with_kernels(keras.layers.Dense(2)) is keras.layers.Dense
    assert without_kernels(kernels.Activation("gelu")) is keras.layers.Activation
    assert without_kernels(keras.layers.Dense(2)) is keras.layers.Dense
