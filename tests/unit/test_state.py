"""What a checkpoint holds, and the weights that evaluation uses."""

from __future__ import annotations

from pathlib import Path

import keras
import numpy as np
import pytest
import tensorflow as tf

from bloodcell_dist.errors import UserError
from bloodcell_dist.training.checkpoint import Checkpoints
from bloodcell_dist.training.optimizers import make_rule
from bloodcell_dist.training.record import EpochRecord
from bloodcell_dist.training.replication import SingleDevice
from bloodcell_dist.training.state import TrainingState
from bloodcell_dist.training.step import StepOutput
from bloodcell_dist.training.update import Update


class Run:
    """A small network with its optimizer and record."""

    def __init__(
        self, *, width: int = 4, rule: str = "lion", ema: float | None = 0.9, seed: int = 0, xla: bool = False
    ) -> None:
        keras.utils.set_random_seed(seed)
        inputs = keras.Input((3,))
        features = keras.layers.BatchNormalization(name="norm")(keras.layers.Dense(width, name="dense")(inputs))
        self.model = keras.Model(inputs, keras.layers.Dense(2, name="logits")(features))
        weights = self.model.trainable_variables
        self.update = Update(
            [weight.value for weight in weights],
            [weight.path for weight in weights],
            make_rule(rule),
            weight_decay=0.1,
            clip_norm=1.0,
            ema_decay=ema,
            xla=xla,
        )
        self.record = EpochRecord(SingleDevice())
        self.state = TrainingState(self.model, self.update, self.record)

    def advance(self, steps: range) -> Run:
        for step in steps:
            generator = np.random.default_rng(step)
            gradients = [
                tf.constant(generator.normal(size=w.shape), tf.float32) for w in self.model.trainable_variables
            ]
            norm, finite = self.update.apply(gradients, tf.constant(0.1))
            self.model.get_layer("norm").moving_mean.assign_add(tf.ones(self.model.get_layer("norm").moving_mean.shape))
            losses = tf.constant(generator.random(2), tf.float32)
            self.record.add([StepOutput(losses, tf.fill([2, 2], 0.5), norm, finite, tf.zeros([], tf.float64))])
        return self


def assert_same(found: dict[str, np.ndarray], expected: dict[str, np.ndarray]) -> None:
    assert set(found) == set(expected)
    for name, array in expected.items():
        np.testing.assert_array_equal(found[name], array, err_msg=name)


@pytest.mark.parametrize("rule", ["lion", "adamw", "sgd"])
def test_a_run_goes_on_from_a_checkpoint_to_the_bit(tmp_path: Path, rule: str) -> None:
    run = Run(rule=rule).advance(range(3))
    checkpoints = Checkpoints(tmp_path, keep=2)
    checkpoints.save(3, run.state.arrays(), {})
    again = Run(rule=rule, seed=1)
    saved = checkpoints.newest()
    assert saved is not None
    again.state.restore(saved.arrays)
    assert_same(again.state.arrays(), run.state.arrays())
    assert_same(again.advance(range(3, 6)).state.arrays(), run.advance(range(3, 6)).state.arrays())


def test_the_arrays_hold_weights_statistics_slots_averages_and_the_record() -> None:
    names = set(Run().advance(range(1)).state.arrays())
    assert {
        "weights/dense/kernel",
        "weights/norm/moving_variance",
        "optimizer/momentum/dense/kernel",
        "optimizer/average/logits/bias",
        "optimizer/counts",
        "optimizer/loss_scale",
        "epoch/losses",
    } <= names


@pytest.mark.parametrize(
    ("other", "message"),
    [
        ({"rule": "adamw"}, r"another network or optimizer: \d+ names differ, such as optimizer/m\w+/.*--run-dir"),
        ({"ema": None}, r"another network or optimizer: 6 names differ, such as optimizer/average/"),
        ({"width": 5}, r"another network: weights/dense/kernel has shape \(3, 4\), expected \(3, 5\); .*--run-dir"),
    ],
)
def test_a_checkpoint_of_another_network_or_optimizer_is_refused_untouched(other: dict, message: str) -> None:
    arrays = Run().advance(range(2)).state.arrays()
    run = Run(**other)
    before = run.state.arrays()
    with pytest.raises(UserError, match=message):
        run.state.restore(arrays)
    assert_same(run.state.arrays(), before)


def test_evaluation_uses_the_averages_and_fresh_statistics_and_leaves_no_trace() -> None:
    run = Run().advance(range(4))
    before = run.state.arrays()
    norm = run.model.get_layer("norm")
    averages = [before[f"optimizer/average/{variable.path}"] for variable in run.model.trainable_variables]
    seen = []

    def recalibrate() -> None:
        seen.append([variable.numpy() for variable in run.model.trainable_variables])
        norm.moving_mean.assign(tf.fill([4], 77.0))

    with run.state.evaluation_weights(recalibrate):
        np.testing.assert_array_equal(norm.moving_mean, np.full(4, 77.0))
        for variable, average in zip(run.model.trainable_variables, averages, strict=True):
            np.testing.assert_array_equal(variable.numpy(), average)
            assert np.abs(variable.numpy() - before[f"weights/{variable.path}"]).max() > 0
    for recalibrated_with, average in zip(seen[0], averages, strict=True):
        np.testing.assert_array_equal(recalibrated_with, average)
    assert_same(run.state.arrays(), before)


def test_without_averages_evaluation_uses_the_weights_themselves() -> None:
    run = Run(ema=None).advance(range(2))
    kernel = run.model.get_layer("dense").kernel.numpy()
    with run.state.evaluation_weights(lambda: None):
        np.testing.assert_array_equal(run.model.get_layer("dense").kernel.numpy(), kernel)


@pytest.mark.parametrize("inside", [False, True])
def test_training_weights_come_back_after_an_error(inside: bool) -> None:
    run = Run().advance(range(2))
    before = run.state.arrays()

    def recalibrate() -> None:
        if not inside:
            raise RuntimeError("no pictures")

    with pytest.raises(RuntimeError), run.state.evaluation_weights(recalibrate):
        raise RuntimeError("no memory")
    assert_same(run.state.arrays(), before)


def test_weights_that_are_not_finite_come_back_too() -> None:
    run = Run()
    run.model.get_layer("norm").moving_mean.assign(np.array([np.nan, np.inf, -0.0, 1e-42], np.float32))
    before = run.model.get_layer("norm").moving_mean.numpy().tobytes()
    with run.state.evaluation_weights(lambda: run.model.get_layer("norm").moving_mean.assign(tf.zeros(4))):
        pass
    assert run.model.get_layer("norm").moving_mean.numpy().tobytes() == before


def test_the_best_weights_travel_with_the_checkpoint() -> None:
    run = Run().advance(range(3))
    best = run.model.get_weights()
    run.state.keep_best()
    run.advance(range(3, 5))
    arrays = run.state.arrays()

    other = Run(seed=1)
    other.state.restore(arrays)
    assert_same(other.state.arrays(), arrays)
    other.state.take_best()
    for ours, theirs in zip(other.model.get_weights(), best, strict=True):
        np.testing.assert_array_equal(ours, theirs)


@pytest.mark.parametrize("xla", [False, True])
def test_what_a_checkpoint_takes_is_not_changed_by_later_updates(xla: bool) -> None:
    """Nothing is copied when a checkpoint begins; TensorFlow must leave the buffers alone as long as they are held."""
    run = Run(xla=xla).advance(range(2))
    held = run.state.arrays()
    before = {name: np.array(array, copy=True) for name, array in held.items()}
    run.advance(range(2, 5))
    assert_same(held, before)
    later = run.state.arrays()
    assert all(np.any(np.asarray(later[name]) != before[name]) for name in before if name.endswith("kernel"))
