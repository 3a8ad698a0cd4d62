"""Every layer as a KerasCV layer: plain calls, tf.data pipelines, configurations."""

import keras
import keras_cv
import numpy as np
import pytest
import tensorflow as tf

from bloodcell_dist.augment.affine import RandomAffine
from bloodcell_dist.augment.base import StatelessAugmentation
from bloodcell_dist.augment.colour import RandomBrightness, RandomContrast, RandomHue, RandomSaturation
from bloodcell_dist.augment.erase import GridMask, RandomCutout
from bloodcell_dist.augment.fourier import FourierMix
from bloodcell_dist.augment.mixing import BatchChoice, CutMix, MixUp
from bloodcell_dist.augment.rand_augment import RandAugment
from bloodcell_dist.augment.shared_warp import SharedWarp

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
]
every_layer = pytest.mark.parametrize("layer", LAYERS, ids=lambda layer: type(layer).__name__)


@pytest.fixture
def batch():
    random = np.random.default_rng(0)
    images = random.integers(0, 256, (BATCH, HEIGHT, WIDTH, 3), dtype=np.uint8)
    return {"images": images, "labels": np.eye(CLASSES, dtype=np.float32)[random.integers(0, CLASSES, BATCH)]}


def check(images, labels):
    assert images.shape == (BATCH, HEIGHT, WIDTH, 3) and labels.shape == (BATCH, CLASSES)
    assert np.min(images) >= -1e-3 and np.max(images) <= 255 + 1e-3
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
