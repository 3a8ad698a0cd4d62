"""CutMix, MixUp and FourierMix against KerasCV's, and the promise that labels follow pixels."""

from unittest import mock

import keras_cv
import numpy as np
import pytest
import tensorflow as tf

from bloodcell_dist import randomness
from bloodcell_dist.augment.fourier import FourierMix, highest
from bloodcell_dist.augment.mixing import BatchChoice, CutMix, MixUp, partners

BATCH, HEIGHT, WIDTH, CLASSES = 8, 24, 32, 8


@pytest.fixture
def images():
    return tf.constant(np.random.default_rng(0).uniform(0, 255, (BATCH, HEIGHT, WIDTH, 3)), tf.float32)


@pytest.fixture
def labels():
    return tf.eye(BATCH, CLASSES)


def draws_for(layer, seed=1, batch=BATCH):
    return np.random.default_rng(seed).uniform(size=(batch, layer.num_draws)).astype(np.float32)


@pytest.mark.parametrize("seed", range(4))
def test_partners_are_others_of_the_group_and_nobody_is_taken_twice(seed):
    chosen = partners(tf.constant(np.random.default_rng(seed).uniform(size=16), tf.float32)).numpy()
    assert sorted(chosen) == list(range(16))
    assert np.all(chosen // 4 == np.arange(16) // 4)
    assert np.all(chosen != np.arange(16))


def test_every_rotation_of_a_group_occurs():
    shares = np.repeat([0.0, 0.4, 0.99], 4).astype(np.float32)
    assert partners(tf.constant(shares)).numpy()[[0, 4, 8]].tolist() == [1, 6, 11]


@pytest.mark.parametrize("layer", [MixUp(), CutMix(), FourierMix(cutoff=4)], ids=lambda layer: type(layer).__name__)
def test_refuses_a_batch_that_is_not_whole_groups(layer):
    with pytest.raises(ValueError, match="mixing needs a batch that is a multiple of 4, got 6 examples"):
        layer.transform(tf.zeros([6, HEIGHT, WIDTH, 3]), tf.zeros([6, 2]), tf.zeros([6, layer.num_draws]))


def stock_mix(layer, images, labels, share, partner, centres=()):
    """A KerasCV mixing layer with its own randomness replaced by given numbers."""
    layer._sample_from_beta = lambda alpha, beta, shape: share
    with (
        mock.patch.object(tf.random, "shuffle", return_value=partner),
        mock.patch.object(tf.random, "uniform", side_effect=list(centres)),
    ):
        return layer({"images": images, "labels": labels})


def test_mixup_equals_kerascv(images, labels):
    layer = MixUp(alpha=0.2)
    draws = draws_for(layer)
    got_images, got_labels = layer.transform(images, labels, tf.constant(draws))
    share = randomness.beta(tf.constant(draws[:, 2]), 0.2)
    expected = stock_mix(keras_cv.layers.MixUp(), images, labels, share, partners(tf.constant(draws[:, 1])))
    np.testing.assert_allclose(got_images, expected["images"], atol=1e-3)
    np.testing.assert_allclose(got_labels, expected["labels"], atol=1e-6)


def test_cutmix_equals_kerascv(images, labels):
    layer = CutMix()
    draws = draws_for(layer)
    draws[:, 2] = np.linspace(0.7, 0.9, BATCH)  # boxes small enough
    draws[:, 3:] = np.random.default_rng(2).uniform(0.4, 0.6, (BATCH, 2))  # to lie inside the picture
    got_images, got_labels = layer.transform(images, labels, tf.constant(draws))
    centres = [
        tf.constant((draws[:, 3] * HEIGHT).astype(np.int32)),
        tf.constant((draws[:, 4] * WIDTH).astype(np.int32)),
    ]
    partner = partners(tf.constant(draws[:, 1]))
    expected = stock_mix(keras_cv.layers.CutMix(), images, labels, tf.constant(draws[:, 2]), partner, centres)
    np.testing.assert_array_equal(got_images, expected["images"])
    np.testing.assert_allclose(got_labels, expected["labels"], atol=1e-6)


@pytest.mark.parametrize("layer", [CutMix(), FourierMix(cutoff=6)], ids=lambda layer: type(layer).__name__)
def test_labels_are_shares_of_pixels(layer, labels):
    flat = tf.tile(10.0 * tf.range(BATCH, dtype=tf.float32)[:, None, None, None], [1, HEIGHT, WIDTH, 3])
    seen: list[float] = []
    for seed in range(6):
        draws = tf.constant(draws_for(layer, seed))
        new_images, new_labels = layer.transform(flat, labels, draws)
        new_labels = new_labels.numpy()
        shares = [[np.mean(image == 10.0 * other) for other in range(BATCH)] for image in new_images.numpy()]
        np.testing.assert_allclose(new_labels, shares, atol=1e-6)
        np.testing.assert_allclose(new_labels.sum(axis=1), 1.0, atol=1e-6)
        seen.extend(np.diag(new_labels))
    assert np.ptp(seen) > 0.5


def test_share_that_fourier_mix_keeps_is_the_one_drawn(images, labels):
    layer = FourierMix(alpha=1.0, cutoff=6)
    draws = draws_for(layer)
    _, new_labels = layer.transform(images, labels, tf.constant(draws))
    np.testing.assert_allclose(np.diag(new_labels), draws[:, 2], atol=0.01)


def test_fourier_masks_equal_kerascvs_binarised():
    landscape = FourierMix(cutoff=6).landscape(tf.constant(draws_for(FourierMix(cutoff=6))[:, 3:]), HEIGHT, WIDTH)
    share = tf.constant(np.linspace(0.05, 0.95, BATCH), tf.float32)
    got = highest(landscape, share).numpy()
    stock = keras_cv.layers.FourierMix()
    for example in range(BATCH):
        expected = stock._binarise_mask(landscape[example], share[example], [HEIGHT, WIDTH]).numpy()
        assert np.mean(got[example] != expected) < 0.01


def test_landscape_with_all_frequencies_is_the_inverse_fourier_transform():
    size, layer = 15, FourierMix(cutoff=7)
    uniforms = tf.constant(draws_for(layer, batch=2)[:, 3:])
    got = layer.landscape(uniforms, size, size).numpy()

    stock = keras_cv.layers.FourierMix()
    frequency = stock._apply_fftfreq(*tf.unstack(tf.constant([size, size]))).numpy()[:, : size // 2 + 1]
    frequency = np.maximum(frequency, 1 / size)
    noise = randomness.normal(uniforms).numpy().reshape(2, 2, size, size // 2 + 1)
    noise = np.fft.ifftshift(noise, axes=2)  # ours lists the rows from the lowest frequency
    expected = np.fft.irfft2((noise[:, 0] + 1j * noise[:, 1]) / frequency**3, s=(size, size))
    scale = expected.std() / got.std()  # heights are only compared with each other
    np.testing.assert_allclose(got * scale, expected, atol=1e-4 * np.abs(expected).max())


def test_fourier_mix_refuses_pictures_too_small_for_its_frequencies():
    layer = FourierMix()
    with pytest.raises(ValueError, match="cutoff 8 needs pictures of 17 pixels, got 16 x 16"):
        layer.transform(tf.zeros([4, 16, 16, 3]), tf.zeros([4, 2]), tf.zeros([4, layer.num_draws]))


def test_probability_leaves_pictures_and_labels_of_the_others(images, labels):
    layer = MixUp(probability=0.5)
    draws = draws_for(layer)
    draws[:, 0] = np.where(np.arange(BATCH) % 2, 0.9, 0.1)
    draws[:, 2] = 0.5
    new_images, new_labels = layer.transform(images, labels, tf.constant(draws))
    np.testing.assert_array_equal(new_images[1::2], images[1::2])
    np.testing.assert_array_equal(new_labels[1::2], labels[1::2])
    np.testing.assert_allclose(np.max(new_labels[::2], axis=1), 0.5, atol=1e-4)


@pytest.mark.parametrize("share", [0.1, 0.4, 0.6, 0.9])
@pytest.mark.parametrize("jit", [False, True])
def test_batch_choice_takes_one_way_for_all(images, labels, share, jit):
    mixers = [CutMix(), MixUp(), FourierMix(cutoff=6)]
    choice = BatchChoice(mixers)
    draws = draws_for(choice)
    draws[:, 1] = share
    got = tf.function(choice.transform, jit_compile=jit)(images, labels, tf.constant(draws))
    expected = (images, labels)
    if share < 0.75:
        layer = mixers[int(4 * share)]
        expected = layer.transform(images, labels, tf.constant(draws[:, 2 : 2 + layer.num_draws]))
    assert np.mean(np.abs(got[0] - expected[0]) > 0.01) < 0.005
    np.testing.assert_allclose(got[1], expected[1], atol=0.005)


def test_refuses_an_alpha_of_zero():
    with pytest.raises(ValueError, match="alpha must be positive, got 0"):
        MixUp(alpha=0)
