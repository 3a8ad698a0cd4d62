"""BatchNorm statistics measured anew: against NumPy, and against what a network does without."""

from __future__ import annotations

import keras
import numpy as np
import pytest
import tensorflow as tf

from bloodcell_dist.models.batchnorm import Recalibration
from bloodcell_dist.models.dropout import StatelessDropout

NORM = keras.layers.BatchNormalization


def network(momentum: float = 0.999, dropout: float = 0.0) -> keras.Model:
    """Two convolutions, each with a norm, 16x16 pictures of three classes."""
    keras.utils.set_random_seed(0)
    pictures = keras.Input((16, 16, 3))
    features = keras.layers.Conv2D(8, 3, strides=2, use_bias=False, name="first")(pictures)
    features = keras.layers.ReLU()(NORM(momentum=momentum, name="norm1")(features))
    features = StatelessDropout(dropout)(features)
    features = keras.layers.Conv2D(8, 3, use_bias=False, name="second")(features)
    features = keras.layers.ReLU()(NORM(momentum=momentum, name="norm2")(features))
    features = keras.layers.GlobalAveragePooling2D()(features)
    return keras.Model(pictures, keras.layers.Dense(3)(features))


def pictures(count: int) -> tuple[np.ndarray, np.ndarray]:
    """uint8 pictures whose class is their tint."""
    generator = np.random.default_rng(0)
    labels = np.arange(count) % 3
    images = generator.normal(120, 25, (count, 16, 16, 3))
    images[np.arange(count), :, :, labels] += 15
    return np.clip(images, 0, 255).astype(np.uint8), labels


def batches(images: np.ndarray, size: int) -> list[np.ndarray]:
    return [images[start : start + size] for start in range(0, len(images), size)]


def statistics(model: keras.Model) -> list[np.ndarray]:
    layers = [layer for layer in model.layers if isinstance(layer, NORM)]
    return [value for layer in layers for value in (layer.moving_mean.numpy(), layer.moving_variance.numpy())]


@pytest.mark.parametrize("xla", [False, True])
def test_the_statistics_are_those_of_all_batches_together(xla: bool) -> None:
    model = network()
    images, _ = pictures(48)
    Recalibration(model, xla)(batches(images, 12))
    activations = keras.Model(model.input, model.get_layer("first").output)(images.astype(np.float32)).numpy()
    activations = activations.astype(np.float64)
    mean, variance = statistics(model)[:2]
    np.testing.assert_allclose(mean, activations.mean((0, 1, 2)), rtol=1e-5, atol=1e-4)
    np.testing.assert_allclose(variance, activations.var((0, 1, 2)), rtol=1e-5)


def test_a_deeper_layer_sees_each_batch_as_training_does() -> None:
    """Its input is what the layers before make of the batch with the batch's own statistics."""
    model = network()
    images, _ = pictures(48)
    Recalibration(model, False)(batches(images, 12))
    before = keras.Model(model.input, model.get_layer("second").output)
    seen = np.concatenate([before(batch, training=True) for batch in batches(images.astype(np.float32), 12)])
    seen = seen.astype(np.float64)
    mean, variance = statistics(model)[2:]
    np.testing.assert_allclose(mean, seen.mean((0, 1, 2)), rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(variance, seen.var((0, 1, 2)), rtol=1e-4)


def test_the_variance_is_right_where_the_mean_is_large() -> None:
    inputs = keras.Input((2, 2, 3))
    model = keras.Model(inputs, NORM()(inputs))
    images = np.random.default_rng(0).normal(250.0, 0.02, (64, 2, 2, 3)).astype(np.float32)
    Recalibration(model, False)(batches(images, 16))
    np.testing.assert_allclose(statistics(model)[1], images.astype(np.float64).var((0, 1, 2)), rtol=1e-3)


def test_what_was_there_before_does_not_matter() -> None:
    model = network()
    images, _ = pictures(24)
    recalibrate = Recalibration(model, False)
    recalibrate(batches(images, 12))
    expected = statistics(model)
    for left_over in (1e6, np.nan, np.inf):
        for layer in model.layers:
            if isinstance(layer, NORM):
                layer.moving_mean.assign(np.full(8, left_over))
                layer.moving_variance.assign(np.full(8, left_over))
        recalibrate(batches(images, 12))
        for found, value in zip(statistics(model), expected, strict=True):
            np.testing.assert_array_equal(found, value)


def test_floats_and_bytes_give_the_same() -> None:
    images, _ = pictures(12)
    found = []
    for array in (images, images.astype(np.float32)):
        model = network()
        Recalibration(model, False)(batches(array, 12))
        found.append(statistics(model))
    for one, other in zip(*found, strict=True):
        np.testing.assert_array_equal(one, other)


def test_training_goes_on_with_its_momentum() -> None:
    recalibrated, untouched = network(0.9), network(0.9)
    images, _ = pictures(24)
    Recalibration(recalibrated, False)(batches(images, 12))
    assert [layer.momentum for layer in recalibrated.layers if isinstance(layer, NORM)] == [0.9, 0.9]
    recalibrated.set_weights(untouched.get_weights())
    batch = tf.constant(images, tf.float32)
    for model in (recalibrated, untouched):
        model(batch, training=True)
    for one, other in zip(statistics(recalibrated), statistics(untouched), strict=True):
        np.testing.assert_array_equal(one, other)
    assert np.abs(statistics(untouched)[0]).max() > 0


def test_the_momentum_comes_back_after_an_error() -> None:
    model = network(0.9)
    with pytest.raises(ValueError, match="expected shape"):
        Recalibration(model, False)([np.zeros((2, 16, 16, 4), np.float32)])
    assert [layer.momentum for layer in model.layers if isinstance(layer, NORM)] == [0.9, 0.9]


def test_dropout_is_silent() -> None:
    images, _ = pictures(24)
    found = []
    weights = network().get_weights()
    for rate in (0.0, 0.8):
        model = network(dropout=rate)
        model.set_weights(weights)
        Recalibration(model, False)(batches(images, 12))
        found.append(statistics(model))
    for one, other in zip(*found, strict=True):
        np.testing.assert_array_equal(one, other)


def test_one_program_serves_all_calls() -> None:
    model = network()
    images, _ = pictures(24)
    recalibrate = Recalibration(model, False)
    for _ in range(3):
        recalibrate(batches(images, 12))
    assert recalibrate._forward.experimental_get_tracing_count() == 1


def test_a_network_without_norms_needs_no_pictures() -> None:
    inputs = keras.Input((4,))
    Recalibration(keras.Model(inputs, keras.layers.Dense(2)(inputs)), False)([])


def test_no_batch_at_all_is_an_error() -> None:
    with pytest.raises(ValueError, match="at least one"):
        Recalibration(network(), False)([])


def test_a_network_at_chance_for_its_statistics_is_good_after_recalibration() -> None:
    model = network(momentum=0.999)
    images, labels = pictures(240)
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(keras.optimizers.Adam(0.003), loss)
    model.fit(images.astype(np.float32), labels, batch_size=24, epochs=4, verbose=0)

    def accuracy() -> float:
        return float(np.mean(np.argmax(model(images.astype(np.float32), training=False), axis=1) == labels))

    before = accuracy()
    Recalibration(model, False)(batches(images, 48))
    assert before < 0.4
    assert accuracy() > 0.95
