"""Colour layers against KerasCV's, at the same factors: float32 rounding of values up to 255 apart."""

import keras_cv
import numpy as np
import pytest
import tensorflow as tf

from bloodcell_dist.augment import colour

BATCH = 4
TOLERANCE = 0.01


@pytest.fixture
def images():
    pixels = np.random.default_rng(0).uniform(0, 255, (BATCH, 12, 10, 3))
    pixels[0, 0] = 117.0  # grey has no hue
    pixels[0, 1] = 0.0
    pixels[0, 2] = [255.0, 0.0, 0.0]
    pixels[0, 3] = [40.0, 200.0, 200.0]  # two brightest channels
    return tf.constant(pixels, tf.float32)


def augmented(layer, images):
    draws = tf.constant(np.random.default_rng(1).uniform(size=(BATCH, layer.num_draws)), tf.float32)
    new_images, _ = layer.transform(images, tf.zeros([BATCH, 1]), draws)
    assert np.min(new_images) >= 0.0 and np.max(new_images) <= 255.0
    return new_images


@pytest.mark.parametrize("factor", [0.3, -0.7, 0.0])
def test_brightness(images, factor):
    stock = keras_cv.layers.RandomBrightness((factor, factor))
    ours = augmented(colour.RandomBrightness((factor, factor)), images)
    np.testing.assert_allclose(ours, stock(images), atol=TOLERANCE)


@pytest.mark.parametrize("factor", [0.6, -0.4, 0.0])
def test_contrast(images, factor):
    stock = keras_cv.layers.RandomContrast((0, 255), 0.5)
    expected = stock.augment_images(images, tf.fill([BATCH, 1, 1, 1], 1.0 + factor))
    ours = augmented(colour.RandomContrast((factor, factor)), images)
    np.testing.assert_allclose(ours, expected, atol=TOLERANCE)


@pytest.mark.parametrize("factor", [0.0, 0.2, 0.5, 0.8])
def test_saturation(images, factor):
    stock = keras_cv.layers.RandomSaturation((factor, factor))
    ours = augmented(colour.RandomSaturation((factor, factor)), images)
    np.testing.assert_allclose(ours, stock(images), atol=TOLERANCE)


def test_full_saturation_leaves_grey_grey(images):
    # KerasCV gives NaN for grey here: its factor is infinite and grey's saturation is 0.
    ours = augmented(colour.RandomSaturation((1.0, 1.0)), images).numpy()
    np.testing.assert_allclose(ours[0, 0], 117.0, atol=TOLERANCE)
    np.testing.assert_allclose(ours[1:].min(axis=-1), 0.0, atol=TOLERANCE)


@pytest.mark.parametrize("factor", [0.0, 0.15, -0.5, 0.9, 1.0])
def test_hue(images, factor):
    stock = keras_cv.layers.RandomHue(1.0, (0, 255))
    expected = stock.augment_images(images, tf.fill([BATCH], 0.5 * factor))
    ours = augmented(colour.RandomHue((factor, factor)), images)
    np.testing.assert_allclose(ours, expected, atol=5 * TOLERANCE)  # KerasCV computes hues of [0, 1] pictures


@pytest.mark.parametrize("factor", [0.0, 0.4, 1.0])
def test_colour_degeneration(images, factor):
    stock = keras_cv.layers.RandomColorDegeneration(1.0)
    expected = stock.augment_images(images, tf.fill([BATCH, 1, 1, 1], factor))
    ours = augmented(colour.RandomColorDegeneration((factor, factor)), images)
    np.testing.assert_allclose(ours, expected, atol=TOLERANCE)


def test_each_example_has_its_own_factor(images):
    draws = tf.constant([[0.0, 0.0], [0.0, 0.25], [0.0, 0.5], [0.0, 0.75]])
    ours, _ = colour.RandomBrightness((0.0, 0.4)).transform(images, tf.zeros([BATCH, 1]), draws)
    for example, factor in enumerate([0.0, 0.1, 0.2, 0.3]):
        np.testing.assert_allclose(ours[example], np.minimum(images[example] + 255 * factor, 255), atol=TOLERANCE)


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: colour.RandomSaturation((0.5, 1.1)), r"factor must be a pair within \[0, 1\]"),
        (lambda: colour.RandomColorDegeneration((-0.1, 0.5)), r"factor must be a pair within \[0, 1\]"),
        (lambda: colour.RandomHue(1.2), r"factor must lie in \[-1, 1\], got 1.2"),
        (lambda: colour.RandomContrast((0.3, 0.1)), r"factor must be a number >= 0 or an ascending pair"),
    ],
)
def test_refuses_impossible_factors(build, message):
    with pytest.raises(ValueError, match=message):
        build()
