"""Blur and sharpness against KerasCV's layers, and at the edges, where the blur differs from KerasCV's."""

import keras_cv
import numpy as np
import pytest
import tensorflow as tf

from bloodcell_dist.augment import focus

BATCH, HEIGHT, WIDTH = 4, 14, 18
TOLERANCE = 0.01


@pytest.fixture
def images():
    values = np.random.default_rng(0).uniform(0, 255, (BATCH, HEIGHT, WIDTH, 3))
    values[0] = 61.0
    values[1] = np.random.default_rng(1).choice([0.0, 255.0], values[1].shape)
    return tf.constant(values, tf.float32)


@pytest.mark.parametrize("factor", [0.0, 0.4, 1.0])
def test_sharpness_equals_kerascv(images, factor):
    stock = keras_cv.layers.RandomSharpness(1.0, (0, 255))
    expected = stock.augment_images(images, tf.fill([BATCH, 1, 1, 1], factor))
    got = focus.adjust_sharpness(images, tf.fill([BATCH], factor))
    np.testing.assert_allclose(got, expected, atol=TOLERANCE)


def test_below_zero_sharpens(images):
    smooth = focus.adjust_sharpness(images, tf.ones([BATCH]))
    sharp = focus.adjust_sharpness(images, -tf.ones([BATCH]))
    np.testing.assert_allclose(sharp, np.clip(2 * images - smooth, 0, 255), atol=TOLERANCE)


@pytest.mark.parametrize("size", [1, 3, 7])
@pytest.mark.parametrize("sigma", [0.5, 1.4])
def test_blur_equals_kerascv_away_from_the_edges(images, size, sigma):
    expected = keras_cv.layers.RandomGaussianBlur(size, (sigma, sigma))(images)
    got = focus.gaussian_blur(images, tf.fill([BATCH], sigma), size)
    inner = slice(size // 2, -(size // 2) or None)
    np.testing.assert_allclose(got[:, inner, inner], expected[:, inner, inner], atol=TOLERANCE)


def test_blur_reflects_at_the_edges(images):
    size, margin = 5, 2
    got = focus.gaussian_blur(images, tf.fill([BATCH], 0.9), size)
    padded = tf.pad(images, [[0, 0], [margin, margin], [margin, margin], [0, 0]], "SYMMETRIC")
    expected = keras_cv.layers.RandomGaussianBlur(size, (0.9, 0.9))(padded)[:, margin:-margin, margin:-margin]
    np.testing.assert_allclose(got, expected, atol=TOLERANCE)
    np.testing.assert_allclose(got[0], 61.0, atol=TOLERANCE)


def test_blur_by_nothing_leaves_pictures_and_each_has_its_own(images):
    got = focus.gaussian_blur(images, tf.constant([0.0, 0.0, 0.0, 1.0]), 7)
    np.testing.assert_allclose(got[:3], images[:3], atol=1e-4)
    assert np.abs(got[3] - images[3]).mean() > 10.0


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: focus.RandomGaussianBlur(4, (0.0, 1.0)), "kernel_size must be odd and positive, got 4"),
        (lambda: focus.RandomGaussianBlur(3, 1.0), "factor must be a pair of numbers >= 0, got 1.0"),
        (
            lambda: focus.mirrored(tf.zeros([1, 2, 9, 3]), 3),
            "a margin of 3 pixels needs pictures of that size, got 2 x 9",
        ),
    ],
)
def test_refuses_impossible_parameters(build, message):
    with pytest.raises(ValueError, match=message):
        build()
