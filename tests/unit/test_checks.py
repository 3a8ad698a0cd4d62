"""The extra checks of --debug: each problem named with its step and examples."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import tensorflow as tf

from bloodcell_dist.errors import TrainingFailed
from bloodcell_dist.training.checks import with_checks
from bloodcell_dist.training.placement import Batch
from bloodcell_dist.training.replication import SingleDevice
from bloodcell_dist.training.step import StepOutput

LABELS = np.array([0, 1, 2, 0, 1, 2])
LOCAL = SingleDevice().local


def output(**changes: Any) -> StepOutput:
    fine = {
        "losses": tf.constant([0.5, 0.7]),
        "probabilities": tf.fill([2, 3], 1 / 3),
        "gradient_norm": tf.constant(1.5),
        "finite": tf.constant(True),
        "collective_s": tf.zeros([], tf.float64),
    }
    return StepOutput(**{**fine, **changes})


def run(indices: list[int], result: StepOutput, labels: np.ndarray = LABELS) -> StepOutput:
    checked = with_checks(lambda rows, step, rates: [result], labels, 3, LOCAL)
    return checked(Batch(tf.constant([indices])), 7, [0.1])[0]


def test_a_sound_step_passes_unchanged() -> None:
    result = output()
    assert run([4, 5], result) is result


@pytest.mark.parametrize(
    ("indices", "changes", "message"),
    [
        ([0, 6], {}, r"step 7: an index points outside the set; training examples \[0, 6\]"),
        ([-1, 0], {}, r"step 7: an index points outside the set; training examples \[-1, 0\]"),
        ([0, 1], {"probabilities": tf.fill([2, 4], 0.25)}, r"step 7: predictions are \(2, 4\)"),
        ([0, 1], {"probabilities": tf.fill([1, 3], 1 / 3)}, r"step 7: predictions are \(1, 3\)"),
        ([3, 5], {"losses": tf.constant([0.1, np.nan])}, r"step 7: the loss is not finite; training examples \[5\]"),
        ([3, 5], {"losses": tf.constant([np.inf, 0.1])}, r"step 7: the loss is not finite; training examples \[3\]"),
        (
            [3, 5],
            {"probabilities": tf.constant([[0.1, 0.2, 0.7], [np.nan, 0.5, 0.5]])},
            r"step 7: the loss is not finite; training examples \[5\]",
        ),
        (
            [0, 1],
            {"finite": tf.constant(False), "gradient_norm": tf.constant(np.inf)},
            r"step 7: the gradient's norm is inf",
        ),
    ],
)
def test_a_problem_is_named_with_step_and_examples(indices: list[int], changes: dict, message: str) -> None:
    with pytest.raises(TrainingFailed, match=message):
        run(indices, output(**changes))


@pytest.mark.parametrize("label", [-1, 3])
def test_a_label_out_of_range_is_found_before_the_step(label: int) -> None:
    def never(rows: Any, step: int, rates: Sequence[float]) -> list[StepOutput]:
        raise AssertionError("the step ran")

    checked = with_checks(never, np.array([0, label]), 3, LOCAL)
    with pytest.raises(TrainingFailed, match=r"step 2: a label is not in 0\.\.2; training examples \[0, 1\]"):
        checked(Batch(tf.constant([[0, 1]])), 2, [0.1])


def test_an_overflow_while_the_loss_scale_is_found_is_no_problem() -> None:
    overflow = output(finite=tf.constant(False), gradient_norm=tf.constant(np.inf))
    checked = with_checks(lambda rows, step, rates: [overflow], LABELS, 3, LOCAL, loss_scaling=True)
    assert checked(Batch(tf.constant([[0, 1]])), 0, [0.1]) == [overflow]


def test_the_second_step_of_a_call_is_named_by_its_own_number() -> None:
    broken = output(losses=tf.constant([np.nan, 0.1]))
    checked = with_checks(lambda rows, step, rates: [output(), broken], LABELS, 3, LOCAL)
    with pytest.raises(TrainingFailed, match=r"step 8: the loss is not finite; training examples \[2\]"):
        checked(Batch(tf.constant([[0, 1], [2, 3]])), 7, [0.1, 0.1])
