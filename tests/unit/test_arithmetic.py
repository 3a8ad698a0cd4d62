"""Batches, steps and epochs from settings and class sizes."""

import numpy as np
import pytest

from bloodcell_dist.arithmetic import work_out
from bloodcell_dist.config import load_settings
from bloodcell_dist.errors import UserError

LABELS = np.repeat(np.arange(4), [10, 20, 30, 40])


@pytest.mark.parametrize(
    ("overrides", "num_replicas", "line"),
    [
        (["train.epochs=3", "train.global_batch_size=32"], 1, "global batch 32 = 32 per replica x 1 replica x 1 acc"),
        (["train.epochs=3", "train.global_batch_size=32"], 4, "global batch 32 = 8 per replica x 4 replicas x 1 acc"),
        (["train.epochs=3", "train.global_batch_size=32"], 4, "3 steps per epoch, 3 epochs, 9 steps"),
        (
            ["train.epochs=3", "train.global_batch_size=48", "optimizer.accumulate_steps=3"],
            2,
            "= 8 per replica x 2 replicas x 3 accumulation steps; 2 steps per epoch, 3 epochs, 6 steps",
        ),
        (
            ["train.epochs=2", "train.global_batch_size=32", "data.balance=oversample", "data.target_per_class=40"],
            1,
            "160 examples per epoch; global batch 32 = 32 per replica x 1 replica x 1 accumulation step; 5 steps per",
        ),
        (["train.epochs=9", "train.global_batch_size=32", "train.max_steps=7"], 1, "3 epochs, 7 steps"),
    ],
)
def test_one_line_says_it_all(overrides: list[str], num_replicas: int, line: str) -> None:
    assert line in str(work_out(load_settings(None, overrides), LABELS, num_replicas))


def test_the_schedule_spans_the_epochs_although_max_steps_ends_earlier() -> None:
    settings = load_settings(None, ["train.epochs=10", "train.global_batch_size=10", "train.max_steps=5"])
    arithmetic = work_out(settings, LABELS, 1)
    assert arithmetic.stages.at(0).schedule.total_steps == 100
    assert arithmetic.length.total_steps == 5


@pytest.mark.parametrize(
    ("size", "replicas", "fix"), [(100, 8, "use 96 or 104"), (3, 8, "use 8"), (64, 3, "use 63 or 66")]
)
def test_a_batch_that_does_not_divide(size: int, replicas: int, fix: str) -> None:
    settings = load_settings(None, ["train.epochs=1", f"train.global_batch_size={size}"])
    with pytest.raises(
        UserError, match=f"train.global_batch_size={size} is not divisible by {replicas} replicas.*{fix}"
    ):
        work_out(settings, LABELS, replicas)
