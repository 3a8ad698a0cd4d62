"""Every layer as a KerasCV layer: plain calls, tf.data pipelines, configurations."""

import os
import subprocess
import sys

import keras
import keras_cv
import numpy as np
import pytest
import tensorflow as tf

from bloodcell_dist.augment.affine import RandomAffine
from bloodcell_dist.augment.base import StatelessAugmentation
from bloodcell_dist.augment.camera import RandomIllumination, RandomNoise
from bloodcell_dist.augment.colour import (
    RandomBrightness,
    RandomColorDegeneration,
    RandomContrast,
    RandomHue,
    RandomSaturation,
)
from bloodcell_dist.augment.erase import GridMask, RandomCutout
from bloodcell_dist.augment.focus import RandomGaussianBlur, RandomSharpness
from bloodcell_dist.augment.fourier import FourierMix
from bloodcell_dist.augment.jpeg import RandomJpegQuality
from bloodcell_dist.augment.layout import settled
from bloodcell_dist.augment.mixing import BatchChoice, CutMix, MixUp
from bloodcell_dist.augment.rand_augment import RandAugment
from bloodcell_dist.augment.shared_warp import SharedWarp
from bloodcell_dist.augment.stain import RandomStain
from bloodcell_dist.augment.tones import AutoContrast, Equalization, Posterization, Solarization

BATCH, HEIGHT, WIDTH, CLASSES = 8, 20, 24, 3

LAYERS = [
    RandomAffine(0.5, 0.5, True, 0.1, 0.1, (0.0, 0.2), 0.2, 0.1, 0.1, fill_mode="nearest", probability=0.7, seed=0),
    SharedWarp([RandAugment(2, 0.3), RandomHue(0.1), RandomAffine(rotation=0.5)], seed=1),
    RandAugment(seed=2),
    RandomBrightness(0.2, seed=3),
    RandomContrast((-0.1, 0.4), seed=4),
    RandomSaturation((0.4, 0.7), seed=5),
    RandomHue(0.3, seed=6),
    GridMask(fill_value=4.0, seed=7),
    RandomCutout((0.1, 0.4), (0.2, 0.5), seed=8),
    MixUp(0.3, seed=9),
    CutMix(seed=10),
    FourierMix(cutoff=5, seed=11),
    BatchChoice([CutMix(), MixUp(), FourierMix(cutoff=5)], seed=12),
    RandomColorDegeneration((0.1, 0.9), seed=13),
    AutoContrast(probability=0.5, seed=14),
    Equalization(seed=15),
    Posterization(3, seed=16),
    Solarization((0.0, 110.0), (60.0, 255.0), seed=17),
    RandomGaussianBlur(5, (0.3, 1.5), seed=18),
    RandomSharpness(0.7, probability=0.5, seed=19),
    RandomStain(0.2, 0.1, seed=20),
    RandomIllumination((0.1, 0.3), (0.0, 0.2), seed=21),
    RandomNoise((1.0, 5.0), (0.0, 5.0), seed=22),
    RandomJpegQuality((30.0, 90.0), seed=23),
]
every_layer = pytest.mark.parametrize("layer", LAYERS, ids=lambda layer: type(layer).__name__)


@pytest.fixture
def batch():
    random = np.random.default_rng(0)
    images = random.integers(0, 256, (BATCH, HEIGHT, WIDTH, 3), dtype=np.uint8)
    return {"images": images, "labels": np.eye(CLASSES, dtype=np.float32)[random.integers(0, CLASSES, BATCH)]}


def check(images, labels):
    assert images.shape == (BATCH, HEIGHT, WIDTH, 3) and labels.shape == (BATCH, CLASSES)
    assert np.min(images) >= 0.0 and np.max(images) <= 255.0
    np.testing.assert_allclose(np.sum(labels, axis=1), 1.0, atol=1e-6)


@every_layer
def test_plain_call_with_labels_and_without(layer, batch):
    result = layer(batch)
    check(result["images"], result["labels"])
    images = layer(tf.constant(batch["images"]))
    assert images.dtype == tf.float32 and images.shape == (BATCH, HEIGHT, WIDTH, 3)


@every_layer
def test_plain_call_mixes_labels_with_the_pictures_draws(layer, batch):
    draws = layer.get_random_transformation_batch(BATCH)
    images, labels = tf.cast(batch["images"], tf.float32), tf.constant(batch["labels"])
    expected_images, expected_labels = layer.transform(images, labels, draws["draws"])
    np.testing.assert_array_equal(layer.augment_images(images, draws), expected_images)
    np.testing.assert_array_equal(layer.augment_labels(labels, draws, raw_images=images), expected_labels)


@every_layer
def test_survives_its_configuration(layer, batch):
    twin = keras.saving.deserialize_keras_object(keras.saving.serialize_keras_object(layer))
    assert type(twin) is type(layer) and twin.get_config() == layer.get_config()
    draws = tf.constant(np.random.default_rng(1).uniform(size=(BATCH, layer.num_draws)), tf.float32)
    images, labels = tf.cast(batch["images"], tf.float32), tf.constant(batch["labels"])
    np.testing.assert_array_equal(twin.transform(images, labels, draws)[0], layer.transform(images, labels, draws)[0])


@pytest.mark.slow
def test_in_a_tf_data_pipeline_among_kerascv_layers(batch):
    pipeline = keras.Sequential([keras_cv.layers.RandomFlip(), *LAYERS, keras_cv.layers.RandomBrightness(0.1)])
    dataset = tf.data.Dataset.from_tensor_slices(batch).batch(BATCH)
    for layer in pipeline.layers:
        dataset = dataset.map(layer)
    result = next(iter(dataset))
    check(result["images"], result["labels"])


def test_single_picture_is_augmented_but_not_mixed(batch):
    image = tf.constant(batch["images"][0])
    assert RandomHue(0.1)(image).shape == (HEIGHT, WIDTH, 3)
    with pytest.raises(ValueError, match="mixing needs a batch that is a multiple of 4, got 1 examples"):
        MixUp()(image)


def test_seeded_plain_calls_repeat_and_others_do_not(batch):
    images = tf.constant(batch["images"])
    first, again = RandomBrightness(0.5, seed=0)(images), RandomBrightness(0.5, seed=0)(images)
    np.testing.assert_array_equal(first, again)
    assert not np.array_equal(RandomBrightness(0.5)(images), RandomBrightness(0.5)(images))


def test_pictures_stay_float32_under_mixed_precision(batch):
    keras.config.set_dtype_policy("mixed_float16")
    try:
        assert RandomBrightness(0.5)(tf.constant(batch["images"])).dtype == tf.float32
    finally:
        keras.config.set_dtype_policy("float32")


def test_settled_tensors_are_the_same_compiled_and_not():
    tensors = [tf.constant([0.0, 3.0, 255.0]), tf.constant([-5, 2]), tf.constant([7], tf.uint8), tf.constant([True])]
    for call in (settled, tf.function(settled), tf.function(settled, jit_compile=True)):
        for got, expected in zip(call(*tensors), tensors, strict=True):
            assert got.dtype == expected.dtype
            np.testing.assert_array_equal(got, expected)


_INSIDE_ANOTHER_FUNCTION = """
import tensorflow as tf
from bloodcell_dist.augment import geometry, layout

@tf.function(jit_compile=True, autograph=False)
def program(images):
    settled = layout.settled(images, tf.sqrt(images))[1]
    return geometry.warp(settled, geometry.rotation(images[:, 0, 0, 0]))

# More than the few operations that TensorFlow's optimizer leaves alone.
tf.function(lambda images: program(tf.abs(images) + 1.0) * 2.0, autograph=False)(tf.ones([2, 8, 8, 3]))
"""


def test_what_is_settled_stays_before_the_branch_in_a_program_that_another_function_calls(tmp_path):
    """TensorFlow's optimizer moves into a branch what that branch alone needs; the training step calls it so."""
    flags = f"{os.environ.get('XLA_FLAGS', '')} --xla_dump_to={tmp_path} --xla_dump_hlo_as_text"
    subprocess.run(
        [sys.executable, "-c", _INSIDE_ANOTHER_FUNCTION],
        env=os.environ | {"XLA_FLAGS": flags, "CUDA_VISIBLE_DEVICES": ""},
        capture_output=True,
        timeout=300,
        check=True,
    )
    (dump,) = tmp_path.glob("*program*.before_optimizations.txt")
    main = dump.read_text().partition("ENTRY")[2]
    assert "conditional(" in main
    assert "sqrt(" in main  # of settled
    assert "shift-left(" in main  # the words of which warp reads four per pixel


def test_settled_keeps_nan_and_adds_nothing_where_there_is_a_gpu(monkeypatch):
    assert np.isnan(tf.function(settled, jit_compile=True)(tf.constant([np.nan, 1.0]))[0])
    tensor = tf.constant([1.0])
    monkeypatch.setattr(tf.config, "get_visible_devices", lambda kind: [kind])
    assert settled(tensor) is tensor and settled(tensor, tensor)[1] is tensor


def test_unknown_picture_size_is_refused():
    layer = RandomAffine()

    @tf.function(input_signature=[tf.TensorSpec([4, None, None, 3])])
    def call(images):
        return layer.transform(images, tf.zeros([4, 1]), tf.zeros([4, layer.num_draws]))

    with pytest.raises(ValueError, match="height and width of the images must be known when traced"):
        call(tf.zeros([4, 8, 8, 3]))


def test_a_layer_without_apply_says_so():
    with pytest.raises(NotImplementedError, match=r"StatelessAugmentation must implement apply\(\)"):
        StatelessAugmentation().transform(tf.zeros([1, 4, 4, 3]), tf.zeros([1, 1]), tf.zeros([1, 1]))
