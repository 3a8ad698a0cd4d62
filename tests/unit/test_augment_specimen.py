"""What differs between laboratories: stain, illumination and noise."""

import numpy as np
import pytest
import tensorflow as tf

from bloodcell_dist.augment import camera, stain

BATCH, HEIGHT, WIDTH = 4, 16, 20


@pytest.fixture
def images():
    values = np.random.default_rng(0).uniform(0, 255, (BATCH, HEIGHT, WIDTH, 3))
    values[0, 0], values[0, 1] = 0.0, 255.0
    return tf.constant(values, tf.float32)


def constant(value, width=None):
    return tf.fill([BATCH] if width is None else [BATCH, width], value)


def test_stain_without_jitter_is_the_picture(images):
    got = stain.jitter_stain(images, constant(1.0, 3), constant(0.0, 3))
    np.testing.assert_allclose(got, images, atol=1e-3)


def test_stain_changes_the_amounts_of_the_dyes():
    amounts = np.random.default_rng(1).uniform(0.1, 0.6, (BATCH, HEIGHT, WIDTH, 3))

    def picture(amounts):
        return tf.constant(256.0 * np.exp(-amounts @ stain.DYES) - 1.0, tf.float32)

    gains, offsets = np.array([1.2, 0.8, 1.1]), np.array([0.05, -0.04, 0.1])
    got = stain.jitter_stain(
        picture(amounts),
        tf.constant(np.tile(gains, (BATCH, 1)), tf.float32),
        tf.constant(np.tile(offsets, (BATCH, 1)), tf.float32),
    )
    np.testing.assert_allclose(got, picture(amounts * gains + offsets), atol=0.01)


def test_stain_layer_draws_each_dye_for_itself(images):
    layer = stain.RandomStain(gain=0.2, offset=(0.0, 0.1))
    draws = np.random.default_rng(2).uniform(size=(BATCH, 7)).astype(np.float32)
    got, _ = layer.transform(images, tf.zeros([BATCH, 1]), tf.constant(draws))
    expected = stain.jitter_stain(images, tf.constant(0.8 + 0.4 * draws[:, 1:4]), tf.constant(0.1 * draws[:, 4:]))
    np.testing.assert_allclose(got, expected, atol=1e-3)


def test_illumination_is_a_plane_and_a_bowl():
    flat = tf.fill([BATCH, HEIGHT, WIDTH, 3], 100.0)
    got = camera.illuminate(flat, constant(0.2), constant(-0.1), constant(0.0)).numpy()
    np.testing.assert_allclose(got.mean(axis=(1, 2)), 100.0, rtol=1e-5)
    np.testing.assert_allclose(np.diff(got[0, :, :, 1], axis=1), 40.0 / WIDTH, rtol=1e-3)
    np.testing.assert_allclose(np.diff(got[0, :, :, 1], axis=0), -20.0 / HEIGHT, rtol=1e-3)
    bowl = camera.illuminate(flat, constant(0.0), constant(0.0), constant(0.1)).numpy()
    np.testing.assert_allclose(bowl, bowl[:, ::-1, ::-1], rtol=1e-5)
    assert bowl[0, HEIGHT // 2, WIDTH // 2, 0] > 99.8 and 80.0 < bowl[0, 0, 0, 0] < 83.0


def noise(draws, height=64, width=96):
    return camera.gaussian_noise(tf.constant(draws, tf.float32), height, width).numpy().reshape(-1, height, width, 3)


def test_noise_is_nearly_normal_and_white():
    values = noise(np.random.default_rng(3).uniform(size=(24, 2)))
    error = values.size**-0.5
    assert abs(values.mean()) < 4 * error
    assert values.std() == pytest.approx(1.0, abs=4 * error)
    assert (values**3).mean() == pytest.approx(0.0, abs=10 * error)
    assert (values**4).mean() == pytest.approx(2.7, abs=0.02)
    assert np.abs(values).max() < 3.46
    for axis in range(4):  # neither neighbours nor channels nor examples go together
        one, other = np.take(values, range(1, values.shape[axis]), axis), np.delete(values, -1, axis)
        assert abs((one * other).mean()) < 4 * error


def test_noise_has_equal_bits_compiled_and_for_a_slice():
    draws = np.random.default_rng(4).uniform(size=(BATCH, 2)).astype(np.float32)
    whole = noise(draws)
    compiled = tf.function(camera.gaussian_noise, jit_compile=True, reduce_retracing=True)
    got = compiled(tf.constant(draws[1:3]), 64, 96)
    np.testing.assert_allclose(np.reshape(got, (2, 64, 96, 3)), whole[1:3], atol=1e-6)
    np.testing.assert_array_equal(noise(draws[1:3]), whole[1:3])


def test_noise_follows_its_deviations():
    grey = tf.fill([BATCH, 64, 64, 3], 63.75)
    layer = camera.RandomNoise(read=(3.0, 3.0), shot=(8.0, 8.0))
    draws = tf.constant(np.random.default_rng(5).uniform(size=(BATCH, 5)), tf.float32)
    got, _ = layer.transform(grey, tf.zeros([BATCH, 1]), draws)
    assert np.std(got - grey) == pytest.approx(5.0, rel=0.02)  # 9 + 64 / 4 = 25
    still, _ = camera.RandomNoise((0.0, 0.0), (0.0, 0.0)).transform(grey, tf.zeros([BATCH, 1]), draws)
    np.testing.assert_array_equal(still, grey)
