"""What an epoch's steps leave behind: order, divergence, and the way through a checkpoint."""

from __future__ import annotations

import numpy as np
import pytest
import tensorflow as tf

from bloodcell_dist.errors import TrainingFailed
from bloodcell_dist.training.record import CHECK_EVERY_STEPS, SKIPPED_LIMIT, EpochRecord, Times
from bloodcell_dist.training.replication import SingleDevice
from bloodcell_dist.training.step import StepOutput


def output(step: int, finite: bool = True) -> StepOutput:
    generator = np.random.default_rng(step)
    losses, probabilities = generator.random(4), generator.dirichlet(np.ones(3), 4)
    return StepOutput(
        tf.constant(losses, tf.float32),
        tf.constant(probabilities, tf.float32),
        tf.constant(1.0),
        tf.constant(finite),
        tf.constant(0.25, tf.float64),
    )


def record_of(steps: range, finite: bool = True) -> EpochRecord:
    record = EpochRecord(SingleDevice())
    for step in steps:
        record.add([output(step, finite)])
    return record


@pytest.mark.parametrize("steps", [1, CHECK_EVERY_STEPS - 1, CHECK_EVERY_STEPS, 2 * CHECK_EVERY_STEPS + 3])
def test_losses_and_predictions_are_in_the_order_of_the_steps(steps: int) -> None:
    record = record_of(range(steps))
    np.testing.assert_array_equal(record.losses(), np.concatenate([output(s).losses for s in range(steps)]))
    np.testing.assert_array_equal(
        record.probabilities(), np.concatenate([output(s).probabilities for s in range(steps)])
    )
    assert record.skipped_updates() == 0


def test_outputs_do_not_pile_up_on_the_device() -> None:
    record = EpochRecord(SingleDevice())
    for step in range(3 * CHECK_EVERY_STEPS):
        record.add([output(step)])
        assert len(record._outputs) < CHECK_EVERY_STEPS


@pytest.mark.parametrize("steps", [1, CHECK_EVERY_STEPS])
def test_the_last_loss_is_the_mean_of_the_latest_step(steps: int) -> None:
    assert record_of(range(steps)).last_loss() == pytest.approx(float(np.mean(output(steps - 1).losses)))


def test_twenty_skipped_updates_in_a_row_end_the_training() -> None:
    record = record_of(range(SKIPPED_LIMIT - 1), finite=False)
    message = r"diverged: the gradients of the last 20 updates were not finite; lower optimizer.learning_rate"
    with pytest.raises(TrainingFailed, match=message):
        record.add([output(SKIPPED_LIMIT, finite=False)])


def test_skipped_updates_with_one_good_one_among_them_do_not() -> None:
    record = EpochRecord(SingleDevice())
    for step in range(3 * SKIPPED_LIMIT):
        record.add([output(step, finite=step % SKIPPED_LIMIT == 7)])
    assert record.skipped_updates() == 3 * (SKIPPED_LIMIT - 1)


def test_skipped_updates_count_over_the_ends_of_short_epochs() -> None:
    record = EpochRecord(SingleDevice())
    with pytest.raises(TrainingFailed, match="diverged"):
        for _ in range(6):
            for step in range(5):
                record.add([output(step, finite=False)])
            assert record.skipped_updates() == 5
            record.clear()


def test_skipped_updates_count_over_a_restart() -> None:
    record = record_of(range(15), finite=False)
    again = EpochRecord(SingleDevice())
    again.restore(record.arrays())
    with pytest.raises(TrainingFailed, match="diverged"):
        for step in range(15, 20):
            again.add([output(step, finite=False)])
        again.read()


@pytest.mark.parametrize("stop", [1, 7, CHECK_EVERY_STEPS, 33])
def test_an_epoch_that_was_interrupted_gives_the_same_figures(stop: int) -> None:
    whole = record_of(range(45))
    first = record_of(range(stop))
    arrays = first.arrays()
    assert set(arrays) == {"epoch/losses", "epoch/probabilities", "epoch/finite"}
    assert all(array.dtype != object for array in arrays.values())
    again = EpochRecord(SingleDevice())
    again.restore(arrays)
    for step in range(stop, 45):
        again.add([output(step)])
    np.testing.assert_array_equal(again.losses(), whole.losses())
    np.testing.assert_array_equal(again.probabilities(), whole.probabilities())
    assert again.skipped_updates() == whole.skipped_updates()
    for name, array in whole.arrays().items():
        np.testing.assert_array_equal(again.arrays()[name], array)


def test_skipped_updates_survive_an_interruption() -> None:
    record = EpochRecord(SingleDevice())
    for step in range(10):
        record.add([output(step, finite=step != 4)])
    again = EpochRecord(SingleDevice())
    again.restore(record.arrays())
    assert again.skipped_updates() == 1


def test_a_cleared_record_is_empty() -> None:
    record = record_of(range(5))
    record.times.seconds = 3.0
    record.clear()
    assert record.arrays() == {}
    assert record.times == Times()
    record.add([output(9)])
    np.testing.assert_array_equal(record.losses(), output(9).losses)


def test_the_time_of_collectives_is_that_of_the_steps_that_count() -> None:
    record = record_of(range(3))
    record.read(timed=False)  # they were compiled
    for step in range(4):
        record.add([output(step)])
    record.read()
    assert record.times.collective_s == 1.0


def test_the_time_of_a_step_has_parts() -> None:
    times = Times(seconds=2.0, steps=4, examples=64, input_s=0.2, collective_s=0.4)
    found = times.per_step()
    assert found["images_per_s"] == 32.0
    assert [found[name] for name in ("step_s", "input_s", "collective_s")] == [0.5, 0.05, 0.1]
    assert found["compute_s"] == pytest.approx(0.35)
    assert set(Times().per_step().values()) == {0.0}  # nothing was timed
