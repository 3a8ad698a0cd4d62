"""Stateless dropout and stochastic depth: rates, and masks that depend on (seed, step, position) and stream only."""

from __future__ import annotations

import functools
import threading
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf

from bloodcell_dist.models.dropout import StatelessDropout, StochasticDepth, randomness, without_dropout

WIDTH = 500


def masked(
    positions: list[int] | range,
    *,
    kind: type[StatelessDropout] = StatelessDropout,
    shape: tuple[int, ...] = (WIDTH,),
    rate: float = 0.4,
    stream: int = 0,
    seed: int = 1,
    step: int = 2,
    dtype: str = "float32",
) -> np.ndarray:
    """What dropout of a kind makes of ones [B, *shape] at these positions of the global batch."""
    layer = kind(rate, stream=stream, dtype=dtype)
    with randomness(seed, tf.constant(step), tf.constant(list(positions))):
        return np.asarray(layer(tf.ones((len(positions), *shape), dtype), training=True), np.float32)


branch = functools.partial(masked, kind=StochasticDepth, shape=(2, 3, 5))
"""What stochastic depth makes of branches of ones."""


@pytest.mark.parametrize("rate", [0.1, 0.5, 0.9])
def test_the_share_set_to_zero_is_the_rate_and_the_mean_stays(rate: float) -> None:
    found = masked(range(200), rate=rate)
    bound = 5 * np.sqrt(rate * (1 - rate) / found.size)
    assert abs(np.mean(found == 0) - rate) < bound
    assert abs(found.mean() - 1.0) < bound / (1 - rate)
    np.testing.assert_allclose(np.unique(found), [0.0, 1.0 / (1.0 - rate)], rtol=1e-6)
    by_example, by_unit = (found == 0).mean(axis=1), (found == 0).mean(axis=0)
    assert np.abs(by_example - rate).max() < 6 * np.sqrt(rate * (1 - rate) / WIDTH)
    assert np.abs(by_unit - rate).max() < 6 * np.sqrt(rate * (1 - rate) / 200)


def test_slices_of_the_batch_get_the_masks_of_the_whole() -> None:
    whole = masked(range(24))
    for parts in (2, 3, 4):
        size = 24 // parts
        slices = [masked(range(part * size, (part + 1) * size)) for part in range(parts)]
        np.testing.assert_array_equal(np.concatenate(slices), whole)


def test_the_same_key_gives_the_same_mask() -> None:
    np.testing.assert_array_equal(masked(range(4)), masked(range(4)))
    np.testing.assert_array_equal(masked([7, 7])[0], masked([7, 7])[1])


@pytest.mark.parametrize("other", [{"seed": 2}, {"step": 3}, {"stream": 1}])
def test_another_key_gives_an_unrelated_mask(other: dict[str, Any]) -> None:
    one, two = masked(range(40), rate=0.5) == 0, masked(range(40), rate=0.5, **other) == 0
    assert abs(np.mean(one == two) - 0.5) < 0.02


def test_examples_get_unrelated_masks() -> None:
    masks = masked(range(40), rate=0.5) == 0
    assert abs(np.mean(masks[1:] == masks[:-1]) - 0.5) < 0.02


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_half_precision_gets_the_masks_of_float32(dtype: str) -> None:
    np.testing.assert_array_equal(masked(range(8), dtype=dtype) == 0, masked(range(8)) == 0)


def test_the_masks_are_the_same_compiled() -> None:
    layer = StatelessDropout(0.4)

    def forward(step: tf.Tensor, positions: tf.Tensor) -> tf.Tensor:
        with randomness(1, step, positions):
            return layer(tf.ones((8, WIDTH)), training=True)

    compiled = tf.function(forward, jit_compile=True)(tf.constant(2), tf.range(8))
    np.testing.assert_array_equal(compiled, masked(range(8)))


def test_shapes_of_any_rank_are_kept() -> None:
    with randomness(0, tf.constant(0), tf.range(3)):
        assert StatelessDropout(0.5)(tf.ones((3, 4, 5, 2)), training=True).shape == (3, 4, 5, 2)


def test_inference_and_rate_zero_change_nothing() -> None:
    ones = tf.ones((4, WIDTH))
    with randomness(0, tf.constant(0), tf.range(4)):
        np.testing.assert_array_equal(StatelessDropout(0.5)(ones, training=False), ones)
        np.testing.assert_array_equal(StatelessDropout(0.5)(ones), ones)
        np.testing.assert_array_equal(StatelessDropout(0.0)(ones, training=True), ones)
    np.testing.assert_array_equal(StatelessDropout(0.5)(ones, training=False), ones)


def test_outside_a_scope_it_is_keras_dropout() -> None:
    ones = tf.ones((20, WIDTH))
    ours, theirs = StatelessDropout(0.3, seed=5), keras.layers.Dropout(0.3, seed=5)
    for _ in range(3):
        np.testing.assert_array_equal(ours(ones, training=True), theirs(ones, training=True))


def test_a_scope_ends_with_its_block_even_after_an_error() -> None:
    with pytest.raises(RuntimeError), randomness(0, tf.constant(0), tf.range(4)):
        raise RuntimeError
    layer, ones = StatelessDropout(0.5, seed=1), tf.ones((4, WIDTH))
    assert (np.asarray(layer(ones, training=True)) != np.asarray(layer(ones, training=True))).any()


def test_scopes_nest() -> None:
    layer = StatelessDropout(0.4)
    with randomness(1, tf.constant(2), tf.range(4)):
        with randomness(9, tf.constant(2), tf.range(4)):
            inner = np.asarray(layer(tf.ones((4, WIDTH)), training=True))
        outer = np.asarray(layer(tf.ones((4, WIDTH)), training=True))
    np.testing.assert_array_equal(outer, masked(range(4)))
    assert (inner != outer).any()


def test_each_thread_has_its_own_scope() -> None:
    """tf.distribute traces each replica in a thread of its own."""
    found = {}
    barrier = threading.Barrier(2, timeout=60)

    def replica(first: int) -> None:
        with randomness(1, tf.constant(2), tf.range(first, first + 4)):
            barrier.wait()
            found[first] = np.asarray(StatelessDropout(0.4)(tf.ones((4, WIDTH)), training=True))
            barrier.wait()

    threads = [threading.Thread(target=replica, args=(first,)) for first in (0, 4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    np.testing.assert_array_equal(np.concatenate([found[0], found[4]]), masked(range(8)))


def test_it_can_be_silenced() -> None:
    ones = tf.ones((4, WIDTH))
    with randomness(0, tf.constant(0), tf.range(4)), without_dropout():
        np.testing.assert_array_equal(StatelessDropout(0.5)(ones, training=True), ones)
    with without_dropout():
        np.testing.assert_array_equal(StatelessDropout(0.5)(ones, training=True), ones)
    assert (np.asarray(StatelessDropout(0.5)(ones, training=True)) == 0).any()


def test_a_model_with_it_saves_and_loads(tmp_path: Path) -> None:
    inputs = keras.Input((WIDTH,))
    model = keras.Model(inputs, StatelessDropout(0.4, stream=3, name="drop")(inputs))
    model.save(tmp_path / "m.keras")
    loaded = keras.saving.load_model(
        tmp_path / "m.keras", custom_objects={"StatelessDropout": StatelessDropout}, compile=False
    )
    layer = loaded.get_layer("drop")
    assert (layer.rate, layer.stream) == (0.4, 3)
    with randomness(1, tf.constant(2), tf.range(4)):
        found = loaded(tf.ones((4, WIDTH)), training=True)
    np.testing.assert_array_equal(found, masked(range(4), stream=3))


def test_a_model_with_it_trains_with_fit() -> None:
    model = keras.Sequential([keras.Input((6,)), StatelessDropout(0.5), keras.layers.Dense(2)])
    model.compile("sgd", "mse")
    history = model.fit(np.ones((8, 6)), np.ones((8, 2)), verbose=0)
    assert np.isfinite(history.history["loss"]).all()


@pytest.mark.parametrize("rate", [0.1, 0.5, 0.9])
def test_a_branch_is_left_out_for_whole_examples(rate: float) -> None:
    found = branch(range(4000), rate=rate).reshape(4000, -1)
    assert (found == found[:, :1]).all()
    dropped = found[:, 0] == 0
    np.testing.assert_allclose(found[~dropped], 1 / (1 - rate), rtol=1e-6)
    assert abs(dropped.mean() - rate) < 4 * np.sqrt(rate * (1 - rate) / 4000)


def test_slices_of_the_batch_leave_out_the_branches_of_the_whole() -> None:
    whole = branch(range(24))
    for parts in (2, 3, 4):
        size = 24 // parts
        slices = [branch(range(part * size, (part + 1) * size)) for part in range(parts)]
        np.testing.assert_array_equal(np.concatenate(slices), whole)
    np.testing.assert_array_equal(branch([23, 7, 7]), whole[[23, 7, 7]])


@pytest.mark.parametrize("other", [{"seed": 2}, {"step": 3}, {"stream": 1}])
def test_another_branch_or_step_is_unrelated(other: dict[str, Any]) -> None:
    one, two = (branch(range(2000), rate=0.5, **key)[:, 0, 0, 0] == 0 for key in ({}, other))
    assert abs(np.mean(one == two) - 0.5) < 4 * 0.5 / np.sqrt(2000)


def test_the_head_and_the_branches_draw_apart() -> None:
    """The layers of both kinds are numbered from 0."""
    layer = StatelessDropout(0.5)
    with randomness(1, tf.constant(2), tf.range(2000)):
        head = np.asarray(layer(tf.ones((2000, 1)), training=True))[:, 0] == 0
    assert abs(np.mean(head == (branch(range(2000), rate=0.5)[:, 0, 0, 0] == 0)) - 0.5) < 4 * 0.5 / np.sqrt(2000)


def test_branches_in_one_scope_are_what_they_are_alone() -> None:
    with randomness(1, tf.constant(2), tf.range(24)):
        found = [StochasticDepth(0.4, stream)(tf.ones((24, 2, 3, 5)), training=True) for stream in range(3)]
    for stream in range(3):
        np.testing.assert_array_equal(found[stream], branch(range(24), stream=stream))


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_half_precision_leaves_out_the_branches_of_float32(dtype: str) -> None:
    np.testing.assert_array_equal(branch(range(24), dtype=dtype) == 0, branch(range(24)) == 0)


def test_branches_are_left_out_alike_compiled() -> None:
    layers = [StochasticDepth(0.4, stream) for stream in range(3)]

    def forward(step: tf.Tensor, positions: tf.Tensor) -> list[tf.Tensor]:
        with randomness(1, step, positions):
            return [layer(tf.ones((8, 2, 3, 5)), training=True) for layer in layers]

    compiled = tf.function(forward, jit_compile=True)(tf.constant(2), tf.range(8))
    for stream in range(3):
        np.testing.assert_array_equal(compiled[stream], branch(range(8), stream=stream))


def test_a_branch_that_is_left_out_gets_no_gradient() -> None:
    layer, values = StochasticDepth(0.4), tf.Variable(tf.ones((24, 1, 1, 1)))
    with randomness(1, tf.constant(2), tf.range(24)), tf.GradientTape() as tape:
        loss = tf.reduce_sum(layer(values, training=True))
    np.testing.assert_array_equal(tape.gradient(loss, values), branch(range(24))[:, :1, :1, :1])


@pytest.mark.parametrize("kind", [StatelessDropout, StochasticDepth])
def test_a_frozen_layer_drops_nothing(kind: type[StatelessDropout]) -> None:
    layer, ones = kind(0.5), tf.ones((24, 2, 3, 5))
    layer.trainable = False
    with randomness(0, tf.constant(0), tf.range(24)):
        np.testing.assert_array_equal(layer(ones, training=True), ones)
    np.testing.assert_array_equal(layer(ones, training=True), ones)
    layer.trainable = True
    with randomness(0, tf.constant(0), tf.range(24)):
        assert (np.asarray(layer(ones, training=True)) == 0).any()


def test_stochastic_depth_can_be_silenced_and_is_off_in_inference() -> None:
    layer, ones = StochasticDepth(0.5), tf.ones((24, 2, 3, 5))
    with randomness(0, tf.constant(0), tf.range(24)):
        np.testing.assert_array_equal(layer(ones, training=False), ones)
        with without_dropout():
            np.testing.assert_array_equal(layer(ones, training=True), ones)
        assert (np.asarray(layer(ones, training=True)) == 0).any()


def test_outside_a_scope_stochastic_depth_is_keras_dropout_of_whole_examples() -> None:
    ones = tf.ones((24, 2, 3, 5))
    ours, theirs = StochasticDepth(0.3, seed=5), keras.layers.Dropout(0.3, noise_shape=(None, 1, 1, 1), seed=5)
    for _ in range(3):
        found = np.asarray(ours(ones, training=True))
        np.testing.assert_array_equal(found, theirs(ones, training=True))
        assert (found == found[:, :1, :1, :1]).all()


def test_stochastic_depth_is_saved_whole() -> None:
    layer = StochasticDepth.from_config(StochasticDepth(0.2, stream=7, name="drop").get_config())
    assert (layer.rate, layer.stream, layer.noise_shape, layer.name) == (0.2, 7, (None, 1, 1, 1), "drop")
