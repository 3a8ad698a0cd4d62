"""GridMask and Cutout against KerasCV's layers at the same parameters."""

import keras_cv
import numpy as np
import pytest
import tensorflow as tf

from bloodcell_dist.augment.erase import GridMask, RandomCutout

HEIGHT, WIDTH = 40, 48


class FixedGenerator:
    """Stands in for a KerasCV layer's generator: hands out prepared shares of the range asked for."""

    def __init__(self, shares):
        self.shares = iter(shares)

    def uniform(self, shape, minval, maxval, dtype):
        return minval + next(self.shares) * (maxval - minval)


def ours(layer, parameter_draws):
    draws = tf.constant([[0.0, *parameter_draws]], tf.float32)
    images, _ = layer.transform(tf.fill([1, HEIGHT, WIDTH, 3], 200.0), tf.zeros([1, 1]), draws)
    return images.numpy()


def stock_grid_mask(ratio, turns, shares):
    layer = keras_cv.layers.GridMask((ratio, ratio), (turns, turns))
    layer._random_generator = FixedGenerator(shares)
    return layer(tf.fill([HEIGHT, WIDTH, 3], 200.0)).numpy()[None]


@pytest.mark.parametrize("ratio", [0.3, 0.5])
@pytest.mark.parametrize("shares", [(0.0, 0.2, 0.7), (0.6, 0.9, 0.1)])
def test_straight_grid_equals_kerascv(ratio, shares):
    expected = stock_grid_mask(ratio, 0.0, shares)
    assert 0.0 < np.mean(expected == 0.0) < 0.5
    np.testing.assert_array_equal(ours(GridMask((ratio, ratio), (0.0, 0.0)), [0.5, *shares, 0.5]), expected)


@pytest.mark.parametrize("turns", [0.06, -0.13])
def test_turned_grid_agrees_with_kerascv(turns):
    shares = (0.4, 0.3, 0.6)
    expected = stock_grid_mask(0.4, turns, shares) == 0.0
    got = ours(GridMask((0.4, 0.4), (turns, turns)), [0.5, *shares, 0.5]) == 0.0
    # KerasCV's holes have a rim more: it interpolates the mask and takes every share above 0 for a hole.
    assert not np.any(got & ~expected)
    assert np.mean(got != expected) < 0.08


@pytest.mark.parametrize("centre", [(0.5, 0.5), (0.0, 0.99)])
def test_cutout_equals_kerascv(centre):
    layer = RandomCutout((0.3, 0.3), (0.45, 0.45), fill_value=7.0)
    got = ours(layer, [*centre, 0.5, 0.5])
    stock = keras_cv.layers.RandomCutout((0.3, 0.3), (0.45, 0.45), fill_value=7.0)
    transformations = {
        "centers_x": tf.constant([int(WIDTH * centre[0])]),
        "centers_y": tf.constant([int(HEIGHT * centre[1])]),
        "rectangles_height": tf.constant([int(np.ceil(HEIGHT * 0.3))]),
        "rectangles_width": tf.constant([int(np.ceil(WIDTH * 0.45))]),
    }
    expected = stock.augment_images(tf.fill([1, HEIGHT, WIDTH, 3], 200.0), transformations)
    np.testing.assert_array_equal(got, expected)


def test_cutout_of_the_whole_picture_and_of_nothing():
    assert np.all(ours(RandomCutout((1.0, 1.0), (1.0, 1.0)), [0.5, 0.5, 0.0, 0.0]) == 0.0)
    assert np.all(ours(RandomCutout((0.0, 0.0), (0.0, 0.0)), [0.5, 0.5, 0.0, 0.0]) == 200.0)
