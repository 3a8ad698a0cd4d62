"""The warp and RandomAffine against KerasCV's geometric layers and the kernel under them."""

from typing import Any

import keras_cv
import numpy as np
import pytest
import tensorflow as tf

from bloodcell_dist.augment import geometry
from bloodcell_dist.augment.affine import RandomAffine
from bloodcell_dist.augment.colour import RandomBrightness
from bloodcell_dist.augment.shared_warp import SharedWarp

BATCH, HEIGHT, WIDTH = 4, 20, 28
# Coordinates of a few dozen pixels in float32, times a slope of up to 255 per pixel.
TOLERANCE = 0.02

FILL_MODES = ["reflect", "nearest", "constant"]


@pytest.fixture
def images():
    values = np.random.default_rng(0).uniform(0, 255, (BATCH, HEIGHT, WIDTH, 3))
    return tf.constant(values, tf.float32)


@pytest.fixture
def whole(images):
    """Colours as in a file, which a move by whole pixels keeps to the bit."""
    return tf.floor(images)


def augmented(layer, images, seed=0):
    draws = np.random.default_rng(seed).uniform(size=(BATCH, layer.num_draws)).astype(np.float32)
    labels = tf.one_hot(range(BATCH), 3)
    new_images, new_labels = layer.transform(images, labels, tf.constant(draws))
    np.testing.assert_array_equal(new_labels, labels)
    return new_images.numpy()


def each(value):
    return tf.fill([BATCH], value)


@pytest.mark.parametrize("mode", ["horizontal", "vertical"])
def test_flips_like_kerascv_to_the_bit(whole, mode):
    certain: dict[str, Any] = {f"flip_{mode}": 1.0}
    ours = augmented(RandomAffine(**certain), whole)
    np.testing.assert_array_equal(ours, keras_cv.layers.RandomFlip(mode, rate=1.0)(whole))


def test_colours_between_whole_numbers_are_read_to_the_nearest_8192th(images):
    flipped = augmented(RandomAffine(flip_horizontal=1.0), images)
    np.testing.assert_allclose(flipped, images[:, :, ::-1], atol=1 / 16384 + 1e-5)
    extremes = tf.reshape(tf.tile(tf.constant([0.0, 255.0]), [HEIGHT * WIDTH * 3 * BATCH // 2]), images.shape)
    np.testing.assert_array_equal(augmented(RandomAffine(flip_vertical=1.0), extremes), extremes[:, ::-1])


@pytest.mark.parametrize("fill_mode", FILL_MODES)
@pytest.mark.parametrize("turns", [0.07, -0.31])
def test_rotates_like_kerascv(images, turns, fill_mode):
    ours = augmented(RandomAffine(rotation=(turns, turns), fill_mode=fill_mode, fill_value=9.0), images)
    stock = keras_cv.layers.RandomRotation((turns, turns), fill_mode=fill_mode, fill_value=9.0)
    np.testing.assert_allclose(ours, stock(images), atol=TOLERANCE)


@pytest.mark.parametrize("fill_mode", FILL_MODES)
@pytest.mark.parametrize("zoom", [0.4, -0.3])
def test_zooms_like_kerascv(images, zoom, fill_mode):
    ours = augmented(RandomAffine(zoom=(zoom, zoom), fill_mode=fill_mode), images)
    stock = keras_cv.layers.RandomZoom((zoom, zoom), fill_mode=fill_mode)
    np.testing.assert_allclose(ours, stock(images), atol=TOLERANCE)


@pytest.mark.parametrize("fill_mode", FILL_MODES)
def test_translates_like_kerascv(images, fill_mode):
    ours = augmented(RandomAffine(translate_x=(0.13, 0.13), translate_y=(-0.6, -0.6), fill_mode=fill_mode), images)
    stock = keras_cv.layers.RandomTranslation((-0.6, -0.6), (0.13, 0.13), fill_mode=fill_mode)
    np.testing.assert_allclose(ours, stock(images), atol=TOLERANCE)


@pytest.mark.parametrize("axis", ["x", "y"])
def test_shears_like_kerascv_about_the_centre(images, axis):
    amount = 0.23
    stock = keras_cv.layers.RandomShear(x_factor=amount, y_factor=amount)
    transformations = {"shear_x": None, "shear_y": None, f"shear_{axis}": tf.fill([BATCH, 1], amount)}
    expected = stock.augment_images(images, transformations)
    # KerasCV shears about the upper left corner, which moves the picture besides.
    if axis == "x":
        ours = geometry.compose(
            geometry.shear(each(amount), each(0.0)), geometry.translation(each(-amount * (HEIGHT - 1) / 2), each(0.0))
        )
    else:
        ours = geometry.compose(
            geometry.shear(each(0.0), each(amount)), geometry.translation(each(0.0), each(-amount * (WIDTH - 1) / 2))
        )
    np.testing.assert_allclose(geometry.warp(images, ours), expected, atol=TOLERANCE)
    fixed: dict[str, Any] = {f"shear_{axis}": (amount, amount)}
    layer = RandomAffine(**fixed)
    affine = layer.affine(tf.zeros([BATCH, 9]), HEIGHT, WIDTH)
    sheared = geometry.shear(each(amount * (axis == "x")), each(amount * (axis == "y")))
    np.testing.assert_allclose(affine, sheared, atol=1e-6)


@pytest.mark.parametrize("fill_mode", FILL_MODES)
def test_composed_maps_equal_one_matrix_product(images, fill_mode):
    random = np.random.default_rng(1)
    steps = []
    for _ in range(3):
        numbers = random.normal(size=(6, BATCH)) * 0.3 + np.array([1, 0, 0, 0, 1, 0])[:, None]
        numbers[[2, 5]] *= 10
        steps.append(geometry.Affine(*(tf.constant(row, tf.float32) for row in numbers)))
    ours = geometry.warp(images, geometry.compose(geometry.compose(*steps[:2]), steps[2]), fill_mode, 77.0)

    to_centre = np.array([[1, 0, -(WIDTH - 1) / 2], [0, 1, -(HEIGHT - 1) / 2], [0, 0, 1]])
    matrices = []
    for example in range(BATCH):
        total = np.eye(3)
        for step in steps:
            six = [float(part[example]) for part in step]
            total = total @ np.array([six[:3], six[3:], [0, 0, 1]])
        matrices.append((np.linalg.inv(to_centre) @ total @ to_centre).ravel()[:8])
    expected = tf.raw_ops.ImageProjectiveTransformV3(
        images=images,
        transforms=tf.constant(np.array(matrices), tf.float32),
        output_shape=[HEIGHT, WIDTH],
        fill_value=77.0,
        interpolation="BILINEAR",
        fill_mode=fill_mode.upper(),
    )
    np.testing.assert_allclose(ours, expected, atol=0.1)  # places up to 200 pixels away


def test_layer_composes_in_its_documented_order():
    layer = RandomAffine(1.0, 0.0, False, (0.1, 0.1), (0.2, 0.2), (0.0, 0.0), (0.3, 0.3), (0.25, 0.25), (0.5, 0.5))
    cosine, sine = np.cos(0.2 * np.pi), np.sin(0.2 * np.pi)
    expected = (
        np.diag([-1.0, 1.0, 1.0])
        @ np.array([[cosine, -sine, 0], [sine, cosine, 0], [0, 0, 1]])
        @ np.array([[1, 0.2, 0], [0, 1, 0], [0, 0, 1]])
        @ np.diag([1.3, 1.3, 1.0])
        @ np.array([[1, 0, -0.25 * WIDTH], [0, 1, -0.5 * HEIGHT], [0, 0, 1]])
    )
    affine = layer.affine(tf.zeros([1, 9]), HEIGHT, WIDTH)
    np.testing.assert_allclose(np.ravel(affine), expected[:2].ravel(), rtol=1e-5)


def test_quarter_turns_are_exact():
    square = tf.constant(np.random.default_rng(2).integers(0, 256, (4, 9, 9, 3)), tf.float32)
    turned = geometry.warp(square, geometry.right_angle_rotation(tf.range(4.0)))
    for turns in range(4):
        np.testing.assert_array_equal(turned[turns], np.rot90(square[turns], turns))


def test_right_angles_draws_all_four():
    layer = RandomAffine(right_angles=True)
    draws = np.zeros((4, 9), np.float32)
    draws[:, 2] = [0.1, 0.3, 0.6, 0.9]
    affine = layer.affine(tf.constant(draws), 9, 9)
    np.testing.assert_allclose(affine.xx, [1, 0, -1, 0], atol=1e-6)
    np.testing.assert_allclose(affine.yx, [0, 1, 0, -1], atol=1e-6)


def test_pictures_that_do_not_move_keep_their_bits(images, whole):
    np.testing.assert_array_equal(geometry.warp(images, geometry.identity(each(0.0))), images)
    some = geometry.select(
        tf.constant([True, False, True, False]), geometry.scale(each(-1.0), each(1.0)), geometry.identity(each(0.0))
    )
    np.testing.assert_array_equal(geometry.warp(images, some)[1::2], images[1::2])
    np.testing.assert_array_equal(geometry.warp(whole, some)[::2], whole[::2, :, ::-1])


def test_probability_leaves_the_others_alone(images, whole):
    layer = RandomAffine(flip_horizontal=1.0, probability=0.5)
    draws = np.full((BATCH, layer.num_draws), 0.5, np.float32)
    draws[:, 0] = [0.1, 0.9, 0.4, 0.6]
    for pictures in (images, whole):
        new_images, _ = layer.transform(pictures, tf.zeros([BATCH, 1]), tf.constant(draws))
        np.testing.assert_array_equal(new_images[1::2], pictures[1::2])
    np.testing.assert_array_equal(new_images[0::2], whole[0::2, :, ::-1])


def test_shared_warp_is_colours_then_one_map(images):
    first, second = RandomAffine(rotation=(0.1, 0.1)), RandomAffine(zoom=(0.2, 0.2), flip_vertical=1.0)
    shared = augmented(SharedWarp([first, RandomBrightness((0.1, 0.1)), second]), images)
    bright = tf.clip_by_value(images + 25.5, 0.0, 255.0)
    no_draws = tf.zeros([BATCH, 9])
    total = geometry.compose(first.affine(no_draws, HEIGHT, WIDTH), second.affine(no_draws, HEIGHT, WIDTH))
    np.testing.assert_allclose(shared, geometry.warp(bright, total), atol=TOLERANCE)


def test_compiled_equals_eager(images):
    layer = RandomAffine(0.5, 0.5, False, 0.5, 0.2, 0.2, 0.3, 0.1, 0.1)
    draws = tf.constant(np.random.default_rng(3).uniform(size=(BATCH, layer.num_draws)), tf.float32)
    labels = tf.zeros([BATCH, 1])
    eager, _ = layer.transform(images, labels, draws)
    compiled, _ = tf.function(layer.transform, jit_compile=True)(images, labels, draws)
    np.testing.assert_allclose(compiled, eager, atol=TOLERANCE)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"fill_mode": "wrap"}, "fill_mode must be one of reflect, nearest, constant, got 'wrap'"),
        ({"zoom": (-1.0, 0.0)}, r"zoom must be above -1, got \(-1.0, 0.0\)"),
        ({"rotation": (0.2, 0.1)}, r"rotation must be a number >= 0 or an ascending pair \(low, high\), got \(0.2"),
        ({"shear_x": -0.1}, "shear_x must be a number >= 0 or an ascending pair"),
        ({"probability": 1.5}, r"probability must lie in \[0, 1\], got 1.5"),
    ],
)
def test_refuses_impossible_arguments(arguments, message):
    with pytest.raises(ValueError, match=message):
        RandomAffine(**arguments)
