"""RandAugment's operations against the KerasCV layers that its RandAugment is made of."""

from typing import Any

import keras_cv
import numpy as np
import pytest
import tensorflow as tf

from bloodcell_dist.augment import geometry
from bloodcell_dist.augment.rand_augment import OPERATIONS, Operation, RandAugment, move_once, recolour_once

BATCH, HEIGHT, WIDTH = 4, 20, 28
TOLERANCE = 0.02
LEVEL, THRESHOLD, SPREAD = 0.37, 0.55, -0.24


@pytest.fixture
def images():
    # Not the full range, or auto-contrast would have nothing to do.
    return tf.constant(np.random.default_rng(0).uniform(30, 220, (BATCH, HEIGHT, WIDTH, 3)), tf.float32)


def operation(*names):
    """An operation per example (one name for all), at fixed strengths."""
    kinds = [OPERATIONS.index(name) if name else -1 for name in names] * (BATCH // len(names))
    return Operation(tf.constant(kinds), *(tf.fill([BATCH], value) for value in (LEVEL, THRESHOLD, SPREAD)))


def stock(name, images):
    layers = keras_cv.layers
    per_image = tf.ones([BATCH, 1, 1, 1])
    match name:
        case "auto_contrast":
            return layers.AutoContrast((0, 255)).augment_images(images)
        case "solarize":
            strengths = {"additions": 110 * LEVEL * per_image, "thresholds": 255 * THRESHOLD * per_image}
            return layers.Solarization((0, 255)).augment_images(images, strengths)
        case "color":
            return layers.RandomColorDegeneration(1.0).augment_images(images, LEVEL * per_image)
        case "contrast":
            return layers.RandomContrast((0, 255), 0.5).augment_images(images, (1 + SPREAD) * per_image)
        case "brightness":
            return layers.RandomBrightness(1.0).augment_images(images, 255 * SPREAD * per_image)


COLOURS = ["auto_contrast", "solarize", "color", "contrast", "brightness"]


@pytest.mark.parametrize("name", COLOURS)
def test_colour_operations_equal_kerascv(images, name):
    got = recolour_once(images, operation(name))
    assert np.abs(got - images).mean() > 1.0
    np.testing.assert_allclose(got, stock(name, images), atol=TOLERANCE)


def test_operations_are_those_of_kerascvs_policy_but_equalise():
    policy = keras_cv.layers.RandAugment.get_standard_policy((0, 255), 0.5, 0.15)
    assert len(OPERATIONS) == len(policy) - 1


def test_different_pictures_undergo_different_operations_at_once(images):
    names = ["solarize", "auto_contrast", "shear_x", "contrast"]
    got = recolour_once(images, operation(*names))
    for example, name in enumerate(names):
        expected = images if name == "shear_x" else stock(name, images)
        np.testing.assert_allclose(got[example], expected[example], atol=TOLERANCE)


def test_colour_operations_follow_their_order(images):
    got, expected = images, images
    for name in ("solarize", "contrast", "auto_contrast"):
        got = recolour_once(got, operation(name))
        expected = stock(name, expected)
    np.testing.assert_allclose(got, expected, atol=3 * TOLERANCE)


def test_flat_pictures_survive_auto_contrast():
    flat = tf.fill([BATCH, HEIGHT, WIDTH, 3], 90.0)
    np.testing.assert_array_equal(recolour_once(flat, operation("auto_contrast")), flat)


@pytest.mark.parametrize("axis", ["x", "y"])
def test_translations_equal_kerascv(images, axis):
    moved = geometry.warp(images, move_once(operation(f"translate_{axis}"), HEIGHT, WIDTH))
    factors = ((0.0, 0.0), (SPREAD, SPREAD)) if axis == "x" else ((SPREAD, SPREAD), (0.0, 0.0))
    np.testing.assert_allclose(moved, keras_cv.layers.RandomTranslation(*factors)(images), atol=TOLERANCE)


def test_shears_have_the_sign_of_spread():
    for name, part in (("shear_x", "xy"), ("shear_y", "yx")):
        affine = move_once(operation(name), HEIGHT, WIDTH)
        np.testing.assert_allclose(getattr(affine, part), -LEVEL, rtol=1e-6)


@pytest.mark.parametrize("name", COLOURS)
def test_colours_do_not_move_pixels(images, name):
    np.testing.assert_array_equal(geometry.warp(images, move_once(operation(name), HEIGHT, WIDTH)), images)


def random_draws(layer, batch, seed=0):
    return tf.constant(np.random.default_rng(seed).uniform(size=(batch, layer.parameter_draws)), tf.float32)


def test_strengths_and_frequencies_follow_the_parameters():
    layer = RandAugment(augmentations_per_image=1, magnitude=0.4, magnitude_stddev=0.1, rate=0.9)
    (drawn,) = layer.operations(random_draws(layer, 4000))
    counts = np.bincount(drawn.kind.numpy() + 1, minlength=len(OPERATIONS) + 1) / 4000
    assert counts[0] == pytest.approx(0.1, abs=0.02)
    assert counts[1:] == pytest.approx(0.9 / len(OPERATIONS), abs=0.02)
    assert np.mean(drawn.level) == pytest.approx(0.4, abs=0.01)
    assert np.std(drawn.level) == pytest.approx(0.1, abs=0.01)
    assert np.mean(drawn.threshold) == pytest.approx(0.6, abs=0.01)
    assert np.max(np.abs(drawn.spread)) == pytest.approx(0.4, abs=0.01)


def test_rate_zero_changes_nothing(images):
    layer = RandAugment(rate=0.0)
    got, _ = layer.transform(images, tf.zeros([BATCH, 1]), tf.constant(0.5, shape=[BATCH, layer.num_draws]))
    np.testing.assert_allclose(got, images, atol=1e-4)


def test_compiled_equals_eager(images):
    layer = RandAugment()
    draws = tf.concat([tf.zeros([BATCH, 1]), random_draws(layer, BATCH)], axis=1)
    eager, _ = layer.transform(images, tf.zeros([BATCH, 1]), draws)
    compiled, _ = tf.function(layer.transform, jit_compile=True)(images, tf.zeros([BATCH, 1]), draws)
    assert np.mean(np.abs(compiled - eager) > TOLERANCE) < 0.005  # a pixel at a threshold may go either way


@pytest.mark.parametrize("name", ["magnitude", "magnitude_stddev", "rate"])
def test_refuses_impossible_parameters(name):
    impossible: dict[str, Any] = {name: 1.2}
    with pytest.raises(ValueError, match=rf"{name} must lie in \[0, 1\], got 1.2"):
        RandAugment(**impossible)
