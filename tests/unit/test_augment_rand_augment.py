"""RandAugment's operations against the KerasCV layers that its RandAugment is made of."""

from typing import Any

import keras_cv
import numpy as np
import pytest
import tensorflow as tf

from bloodcell_dist.augment import geometry
from bloodcell_dist.augment.operations import OPERATIONS, Operation, move_once, recolour_once
from bloodcell_dist.augment.rand_augment import RandAugment

BATCH, HEIGHT, WIDTH = 4, 20, 28
TOLERANCE = 0.02
LEVEL, THRESHOLD, SPREAD = 0.37, 0.55, -0.24


@pytest.fixture
def images():
    # Not the full range, or auto-contrast would have nothing to do.
    return tf.constant(np.random.default_rng(0).uniform(30, 220, (BATCH, HEIGHT, WIDTH, 3)), tf.float32)


def operation(*names, turn=0):
    """An operation per example (one name for all), at fixed strengths."""
    kinds = [OPERATIONS.index(name) if name else -1 for name in names] * (BATCH // len(names))
    level, threshold, spread = (tf.fill([BATCH], value) for value in (LEVEL, THRESHOLD, SPREAD))
    return Operation(tf.constant(kinds), level, threshold, spread, tf.constant([turn]))


def stock(name, images):
    layers = keras_cv.layers
    per_image = tf.ones([len(images), 1, 1, 1])
    match name:
        case "equalize":
            return layers.Equalization((0, 255)).augment_images(images)
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


COLOURS = ["equalize", "color", "auto_contrast", "contrast", "solarize", "brightness"]
CHOSEN = 1  # whose turn it is in the tests of operations that are for one member of a group


@pytest.mark.parametrize("name", COLOURS[4:])
def test_colour_operations_equal_kerascv(images, name):
    got = recolour_once(images, operation(name))
    assert np.abs(got - images).mean() > 1.0
    np.testing.assert_allclose(got, stock(name, images), atol=TOLERANCE)


@pytest.mark.parametrize("name", COLOURS[:4])
def test_colour_operations_of_one_member_equal_kerascv(images, name):
    names = [name if place == CHOSEN else None for place in range(BATCH)]
    got = recolour_once(images, operation(*names, turn=CHOSEN if name in COLOURS[:2] else (CHOSEN + 2) % BATCH))
    expected = stock(name, images[CHOSEN : CHOSEN + 1])[0]
    assert np.abs(got[CHOSEN] - images[CHOSEN]).mean() > 1.0
    np.testing.assert_allclose(got[CHOSEN], expected, atol=TOLERANCE)
    others = [place for place in range(BATCH) if place != CHOSEN]
    np.testing.assert_array_equal(tf.gather(got, others), tf.gather(images, others))


def test_operations_are_those_of_kerascvs_policy():
    policy = keras_cv.layers.RandAugment.get_standard_policy((0, 255), 0.5, 0.15)
    assert len(OPERATIONS) == len(policy)


def test_different_pictures_undergo_different_operations_at_once(images):
    names = ["solarize", "auto_contrast", "shear_x", "equalize"]
    got = recolour_once(images, operation(*names, turn=3))
    for example, name in enumerate(names):
        expected = images if name == "shear_x" else stock(name, images)
        np.testing.assert_allclose(got[example], expected[example], atol=TOLERANCE)


def test_colour_operations_follow_their_order(images):
    got, expected = images, images
    for names in (["solarize"], [None, None, "contrast", None], ["brightness"]):
        got = recolour_once(got, operation(*names))
        expected = stock(names[-2:][0], expected)
    np.testing.assert_allclose(got[2], expected[2], atol=3 * TOLERANCE)


@pytest.mark.parametrize("name", COLOURS[:3])
def test_flat_pictures_survive(name):
    flat = tf.fill([BATCH, HEIGHT, WIDTH, 3], 90.0)
    for turn in range(BATCH):
        np.testing.assert_allclose(recolour_once(flat, operation(name, turn=turn)), flat, atol=TOLERANCE)


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
    members = np.arange(4000) % 4
    for member in range(4):  # each place in a group alike
        counts = np.bincount(drawn.kind.numpy()[members == member] + 1, minlength=len(OPERATIONS) + 1) / 1000
        assert counts[1:] == pytest.approx(0.9 / len(OPERATIONS), abs=0.035)
    assert np.mean(drawn.level) == pytest.approx(0.4, abs=0.01)
    assert np.std(drawn.level) == pytest.approx(0.1, abs=0.01)
    assert np.mean(drawn.threshold) == pytest.approx(0.6, abs=0.01)
    assert np.max(np.abs(drawn.spread)) == pytest.approx(0.4, abs=0.01)


@pytest.mark.parametrize("rate", [10 / 11, 1.0])
def test_costly_operations_fall_to_one_member_of_each_group(rate):
    (drawn,) = RandAugment(augmentations_per_image=1, rate=rate).operations(random_draws(RandAugment(1), 400))
    kinds, turns = drawn.kind.numpy().reshape(-1, 4), drawn.turn.numpy()
    for group, turn in zip(kinds, turns, strict=True):
        for place, kind in enumerate(group):
            if kind in (0, 1):
                assert place == turn
            if kind in (2, 3):
                assert place == (turn + 2) % 4
    assert rate < 1.0 or np.all(kinds >= 0)


def test_refuses_a_batch_that_is_not_whole_groups(images):
    layer = RandAugment()
    with pytest.raises(ValueError, match="RandAugment needs a batch that is a multiple of 4, got 3 examples"):
        layer.transform(images[:3], tf.zeros([3, 1]), tf.zeros([3, layer.num_draws]))


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
