"""Predictions for a whole set: every example once, whatever the sizes."""

from __future__ import annotations

from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf

from bloodcell_dist.errors import UserError
from bloodcell_dist.evaluation.predict import make_forward, padded_batches, predict

IMAGES = np.random.default_rng(0).integers(0, 256, (401, 8, 8, 3), dtype=np.uint8)


@pytest.fixture(scope="module")
def model() -> keras.Model:
    """A network that gives logits."""
    keras.utils.set_random_seed(0)
    return keras.Sequential(
        [
            keras.Input((8, 8, 3)),
            keras.layers.Rescaling(1 / 255),
            keras.layers.Conv2D(4, 3),
            keras.layers.BatchNormalization(),
            keras.layers.Dropout(0.5),
            keras.layers.Flatten(),
            keras.layers.Dense(5),
        ]
    )


@pytest.mark.parametrize("batch_size", [3, 256])
@pytest.mark.parametrize("count", [1, 7, 256, 401])
def test_every_example_is_predicted_once_in_order(count: int, batch_size: int) -> None:
    def forward(images: tf.Tensor) -> tf.Tensor:
        return tf.reduce_sum(tf.cast(images, tf.float32), axis=(1, 2))

    found = predict(forward, IMAGES[:count], batch_size)
    np.testing.assert_array_equal(found, IMAGES[:count].sum((1, 2), dtype=np.float32))


@pytest.mark.parametrize("batch_size", [3, 256])
@pytest.mark.parametrize("count", [1, 7, 256, 401])
def test_batches_have_one_shape_and_their_counts_make_the_set(count: int, batch_size: int) -> None:
    batches = list(padded_batches(IMAGES[:count], batch_size))
    assert {batch.shape for batch, _ in batches} == {(batch_size, 8, 8, 3)}
    assert sum(kept for _, kept in batches) == count
    np.testing.assert_array_equal(np.concatenate([batch[:kept] for batch, kept in batches]), IMAGES[:count])


@pytest.mark.parametrize("batch_size", [3, 256])
@pytest.mark.parametrize("count", [1, 7, 256, 401])
def test_predictions_are_those_of_keras(model: keras.Model, count: int, batch_size: int) -> None:
    expected = keras.ops.softmax(model.predict(IMAGES[:count].astype(np.float32), verbose=0))
    found = predict(make_forward(model, logits=True, xla=False), IMAGES[:count], batch_size)
    assert found.shape == (count, 5)
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6)


def test_compiled_predictions_agree(model: keras.Model) -> None:
    plain, compiled = (predict(make_forward(model, logits=True, xla=xla), IMAGES[:20], 8) for xla in (False, True))
    np.testing.assert_allclose(compiled, plain, rtol=1e-5, atol=1e-6)


def test_probabilities_pass_unchanged(model: keras.Model) -> None:
    classifier = keras.Sequential([model, keras.layers.Softmax()])
    found = predict(make_forward(classifier, logits=False, xla=False), IMAGES[:7], 7)
    np.testing.assert_allclose(found, predict(make_forward(model, logits=True, xla=False), IMAGES[:7], 7), rtol=1e-5)


def test_half_precision_gives_float32_probabilities() -> None:
    inputs = keras.Input((8, 8, 3))
    half = keras.Model(inputs, keras.layers.Dense(3, dtype="mixed_bfloat16")(keras.layers.Flatten()(inputs)))
    found = predict(make_forward(half, logits=True, xla=False), IMAGES[:5], 5)
    assert found.dtype == np.float32
    np.testing.assert_allclose(found.sum(axis=1), 1.0, atol=1e-6)


def test_new_weights_are_seen_without_tracing_again(model: keras.Model) -> None:
    forward: Any = make_forward(model, logits=True, xla=False)
    before = predict(forward, IMAGES[:20], 8)
    kept = model.get_weights()
    model.set_weights([weight * 0.5 for weight in kept])
    after = predict(forward, IMAGES[:20], 8)
    model.set_weights(kept)
    assert np.abs(before - after).max() > 1e-4
    np.testing.assert_array_equal(predict(forward, IMAGES[:20], 8), before)
    assert forward.experimental_get_tracing_count() == 1


def test_small_sets_of_many_sizes_share_their_traces(model: keras.Model) -> None:
    forward: Any = make_forward(model, logits=True, xla=False)
    whole = predict(forward, IMAGES[:10], 10)
    for count in range(1, 11):
        np.testing.assert_allclose(predict(forward, IMAGES[:count], 10), whole[:count], rtol=1e-5)
    assert forward.experimental_get_tracing_count() == 9  # up to eight each, then 10 for nine too


def test_no_pictures_are_the_persons_mistake() -> None:
    with pytest.raises(UserError, match="there are no pictures to predict: the set is empty; give at least one"):
        predict(lambda images: images, IMAGES[:0], 8)
