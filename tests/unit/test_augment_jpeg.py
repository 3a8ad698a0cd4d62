"""JPEG compression against libjpeg."""

import numpy as np
import pytest
import tensorflow as tf

from bloodcell_dist.augment import jpeg

BATCH = 4
# libjpeg computes in whole numbers, so a coefficient half-way between two steps may go the other way. Mean differences
# in grey levels: 0.4 to 1.1 for these smooth pictures, 0.0 to 1.8 for noise, up to 2.8 for the smallest pictures.
TOLERANCE, TOLERANCE_OF_SMALL = 2.0, 3.5


def smooth(height, width):
    return tf.floor(tf.image.resize(np.random.default_rng(0).uniform(0, 255, (BATCH, 6, 5, 3)), [height, width]))


def noise(height, width):
    return tf.constant(np.random.default_rng(0).integers(0, 256, (BATCH, height, width, 3)), tf.float32)


def libjpeg(images, quality):
    """By the slow transform, which rounds least; `fancy_upscaling` is TensorFlow's default."""
    one = [
        tf.image.adjust_jpeg_quality(tf.cast(image, tf.uint8), quality, dct_method="INTEGER_ACCURATE")
        for image in images
    ]
    return np.stack(one).astype(np.float32)


def compressed(images, quality):
    return jpeg.compress(images, tf.fill([BATCH], float(quality))).numpy()


@pytest.mark.parametrize("quality", [1, 10, 49, 50, 75, 95, 100])
def test_agrees_with_libjpeg(quality):
    for images in (smooth(48, 32), noise(48, 32)):
        got, expected = compressed(images, quality), libjpeg(images, quality)
        assert np.abs(got - expected).mean() < TOLERANCE
        assert np.abs(got - images).mean() == pytest.approx(np.abs(expected - images).mean(), rel=0.1, abs=0.3)


@pytest.mark.parametrize("size", [(47, 33), (17, 16), (8, 8), (16, 8), (7, 9), (1, 1)])
def test_any_size(size):
    images = smooth(*size)
    got = compressed(images, 60)
    assert got.shape == images.shape
    assert np.abs(got - libjpeg(images, 60)).mean() < TOLERANCE_OF_SMALL


@pytest.mark.parametrize("value", [0.0, 93.0, 255.0])
def test_flat_grey_is_kept(value):
    flat = tf.fill([BATCH, 20, 20, 3], value)
    np.testing.assert_allclose(compressed(flat, 50), flat, atol=1.0)


def test_quantisation_tables_are_libjpegs():
    steps = jpeg.quantisation(tf.constant([50.0, 100.0, 1.0, 25.0])).numpy()
    np.testing.assert_array_equal(steps[0], jpeg.TABLES)
    np.testing.assert_array_equal(steps[1], 1.0)
    np.testing.assert_array_equal(steps[2], 255.0)
    np.testing.assert_array_equal(steps[3, 0, :4], [32, 22, 20, 32])


def test_each_picture_has_its_own_quality_from_low_to_high():
    layer, images = jpeg.RandomJpegQuality((20, 22)), smooth(16, 16)
    draws = tf.constant([[0.0, 0.1], [0.0, 0.5], [0.0, 0.9], [0.0, 0.99]])
    got, _ = layer.transform(images, tf.zeros([BATCH, 1]), draws)
    np.testing.assert_allclose(got, jpeg.compress(images, tf.constant([20.0, 21.0, 22.0, 22.0])), atol=1e-3)


def test_compiled_equals_eager():
    images, quality = smooth(40, 24), tf.constant([30.0, 60.0, 90.0, 100.0])
    eager, compiled = (call(images, quality) for call in (jpeg.compress, tf.function(jpeg.compress, jit_compile=True)))
    assert np.mean(np.abs(compiled - eager) > 0.5) < 0.02  # a coefficient half-way may go either way


def test_refuses_impossible_qualities():
    with pytest.raises(ValueError, match=r"factor must be a pair within \[1, 100\], got \(0, 50\)"):
        jpeg.RandomJpegQuality((0, 50))
