"""The losses against Keras' own, on soft labels."""

from __future__ import annotations

import keras
import numpy as np
import pytest
import tensorflow as tf

from bloodcell_dist.training.losses import make_loss

NUM_CLASSES = 8


@pytest.fixture
def labels() -> tf.Tensor:
    """Mixed labels, as CutMix and MixUp make them, and pure ones."""
    mixed = np.random.default_rng(0).dirichlet(np.full(NUM_CLASSES, 0.3), 20)
    return tf.constant(np.concatenate([mixed, np.eye(NUM_CLASSES)]), tf.float32)


@pytest.fixture
def logits() -> tf.Tensor:
    return tf.constant(np.random.default_rng(1).normal(0, 3, (28, NUM_CLASSES)), tf.float32)


@pytest.mark.parametrize("smoothing", [0.0, 0.1, 0.9])
def test_cross_entropy_is_that_of_keras(labels: tf.Tensor, logits: tf.Tensor, smoothing: float) -> None:
    theirs = keras.losses.CategoricalCrossentropy(from_logits=True, label_smoothing=smoothing, reduction=None)
    losses = make_loss("cross_entropy", label_smoothing=smoothing)(labels, logits)
    assert losses.shape == (28,)
    assert losses.dtype == tf.float32
    np.testing.assert_allclose(losses, theirs(labels, logits), rtol=2e-6, atol=2e-6)


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize("gamma", [0.0, 0.5, 2.0, 3.5])
def test_focal_loss_is_that_of_keras(labels: tf.Tensor, logits: tf.Tensor, gamma: float, smoothing: float) -> None:
    theirs = keras.losses.CategoricalFocalCrossentropy(
        alpha=1.0, gamma=gamma, from_logits=True, label_smoothing=smoothing, reduction=None
    )
    losses = make_loss("focal", focal_gamma=gamma, label_smoothing=smoothing)(labels, logits)
    np.testing.assert_allclose(losses, theirs(labels, logits), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("gamma", [0.0, 0.5, 1.0, 2.0])
@pytest.mark.parametrize("gap", [0.0, 10.0, 30.0, 1000.0])
def test_the_focal_loss_has_finite_gradients_where_the_network_is_sure(gamma: float, gap: float) -> None:
    """(1 - p)^gamma has no derivative at p = 1 for gamma below 1, and float32 reaches p = 1 at a gap of 17."""
    logits = tf.constant([[gap, 0.0, 0.0], [0.0, gap, 0.0]])
    labels = tf.constant([[1.0, 0.0, 0.0], [1.0, 0.0, 0.0]])
    with tf.GradientTape() as tape:
        tape.watch(logits)
        losses = make_loss("focal", focal_gamma=gamma)(labels, logits)
    assert np.isfinite(losses).all()
    assert np.isfinite(tape.gradient(losses, logits)).all()


def test_focal_loss_with_gamma_zero_is_cross_entropy(labels: tf.Tensor, logits: tf.Tensor) -> None:
    np.testing.assert_allclose(
        make_loss("focal", focal_gamma=0.0)(labels, logits), make_loss("cross_entropy")(labels, logits), rtol=1e-6
    )


@pytest.mark.parametrize("name", ["cross_entropy", "focal"])
def test_a_mixed_label_gets_the_mixture_of_its_classes_weights(labels: tf.Tensor, logits: tf.Tensor, name: str) -> None:
    weights = np.linspace(0.2, 3.0, NUM_CLASSES).astype(np.float32)
    plain = make_loss(name, label_smoothing=0.1)(labels, logits).numpy()
    weighted = make_loss(name, label_smoothing=0.1, class_weights=weights.tolist())(labels, logits).numpy()
    np.testing.assert_allclose(weighted, plain * (labels.numpy() @ weights), rtol=1e-5)
    np.testing.assert_allclose(weighted[20:], plain[20:] * weights, rtol=1e-5)


def test_large_logits_give_finite_losses() -> None:
    logits = tf.constant([[1e4, -1e4, 0.0], [-1e4, 1e4, 0.0]])
    losses = make_loss("cross_entropy", label_smoothing=0.1)(tf.constant([[1.0, 0, 0], [1.0, 0, 0]]), logits)
    assert np.isfinite(losses).all()
