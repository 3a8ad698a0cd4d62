"""Histograms, and the layers of one curve per channel, against NumPy and KerasCV's layers."""

import keras_cv
import numpy as np
import pytest
import tensorflow as tf
from tensorflow.python.framework import config as tf_config

from bloodcell_dist.augment import tones
from bloodcell_dist.augment.histogram import equalize, histogram

BATCH, HEIGHT, WIDTH = 4, 18, 26
TOLERANCE = 0.01


def pictures(name):
    random = np.random.default_rng(0)
    shape = (BATCH, HEIGHT, WIDTH, 3)
    values = {
        "random": random.uniform(0, 255, shape),
        "whole": random.integers(0, 256, shape),
        "dark": random.integers(0, 9, shape),
        "two colours": random.choice([40.0, 201.0], shape),
        "black and white": random.choice([0.0, 255.0], shape),
        "one odd pixel": np.where(np.arange(HEIGHT * WIDTH * 3).reshape(shape[1:]) < 3, 7.0, 180.0) * np.ones(shape),
        "constant": np.full(shape, 77.0),
        "white": np.full(shape, 255.0),
        "black": np.zeros(shape),
        "tiny": random.integers(0, 256, (BATCH, 2, 3, 3)),
    }
    return tf.constant(values[name], tf.float32)


every_picture = pytest.mark.parametrize(
    "name",
    [
        "random",
        "whole",
        "dark",
        "two colours",
        "black and white",
        "one odd pixel",
        "constant",
        "white",
        "black",
        "tiny",
    ],
)


def augmented(layer, images):
    draws = tf.constant(np.random.default_rng(1).uniform(size=(BATCH, layer.num_draws)), tf.float32)
    return layer.transform(images, tf.zeros([BATCH, 1]), draws)[0]


@pytest.mark.parametrize("count", [1, 31, 32, 1000, 1024, 5000, 70_000])
def test_histogram_counts_every_value(count):
    values = np.random.default_rng(count).integers(0, 256, (2, count))
    values[0] = 255
    expected = [np.bincount(row, minlength=256) for row in values]
    np.testing.assert_array_equal(histogram(tf.constant(values, tf.int32)), expected)


@every_picture
def test_equalization_equals_kerascv_to_the_bit(name):
    images = pictures(name)
    expected = keras_cv.layers.Equalization((0, 255)).augment_images(images)
    np.testing.assert_array_equal(augmented(tones.Equalization(), images), expected)


@pytest.fixture
def deterministic():
    tf.config.experimental.enable_op_determinism()
    yield
    tf_config.disable_op_determinism()


@pytest.mark.parametrize("jit_compile", [True, False])
def test_equalization_is_the_same_compiled_and_under_determinism(jit_compile, deterministic):
    images = pictures("random")
    got = tf.function(equalize, jit_compile=jit_compile)(images)
    np.testing.assert_array_equal(got, equalize(images))


@every_picture
def test_auto_contrast(name):
    images = pictures(name)
    expected = keras_cv.layers.AutoContrast((0, 255)).augment_images(images)
    np.testing.assert_allclose(augmented(tones.AutoContrast(), images), expected, atol=TOLERANCE)


@every_picture
@pytest.mark.parametrize("bits", [1, 4, 8])
def test_posterization_equals_kerascv_to_the_bit(name, bits):
    images = pictures(name)
    expected = keras_cv.layers.Posterization((0, 255), bits)(images)
    np.testing.assert_array_equal(augmented(tones.Posterization(bits), images), expected)


@every_picture
@pytest.mark.parametrize(("addition", "threshold"), [(0.0, 128.0), (100.0, 200.0), (0.0, 0.0), (255.0, 255.0)])
def test_solarization(name, addition, threshold):
    images = pictures(name)
    strengths = {"additions": tf.constant(addition), "thresholds": tf.constant(threshold)}
    expected = keras_cv.layers.Solarization((0, 255)).augment_images(images, strengths)
    ours = augmented(tones.Solarization((addition, addition), (threshold, threshold)), images)
    np.testing.assert_array_equal(ours, expected)


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: tones.Posterization(9), "bits must be a whole number from 1 to 8, got 9"),
        (lambda: tones.Solarization((0.0, 256.0)), r"addition_factor must be a pair within \[0, 255\], got \(0.0, 256"),
        (lambda: tones.Solarization(threshold_factor=3.0), r"threshold_factor must be a pair within \[0, 255\]"),
    ],
)
def test_refuses_impossible_parameters(build, message):
    with pytest.raises(ValueError, match=message):
        build()
