"""Which epoch is the best one."""

import json
import math
from dataclasses import asdict

import numpy as np
import pytest

from bloodcell_dist.atomic import to_json
from bloodcell_dist.errors import TrainingFailed
from bloodcell_dist.evaluation.epochs import Standing, training_metrics


@pytest.mark.parametrize(
    ("values", "lower_is_better", "best"),
    [
        ([0.5, 0.7, 0.6], False, 1),
        ([0.5, 0.7, 0.6], True, 0),
        ([0.7, 0.7], False, 0),
        ([math.nan, 0.2, 0.1], False, 1),
        ([math.nan, 0.2, 0.1], True, 2),
        ([0.3, math.nan], False, 0),
        ([math.nan, math.nan], False, 0),
    ],
)
def test_best_epoch(values: list[float], lower_is_better: bool, best: int) -> None:
    standing = Standing()
    for epoch, value in enumerate(values):
        standing.note(epoch, 10 * (epoch + 1), value, lower_is_better)
    assert (standing.best_epoch, standing.best_step) == (best, 10 * (best + 1))
    assert standing.best_value == (None if math.isnan(values[best]) else values[best])
    assert Standing(**json.loads(json.dumps(to_json(asdict(standing))))) == standing


def test_an_overflowed_pass_is_left_out_of_the_training_metrics() -> None:
    """A NaN in the record would end the run, and every restart of it, since the record is in the checkpoint."""
    probabilities = np.array([[0.9, 0.1], [0.2, 0.8], [np.nan, np.nan], [0.6, 0.4]], np.float32)
    losses = np.array([0.1, 0.2, np.nan, 0.6], np.float32)
    labels = np.array([0, 1, 1, 1])
    metrics = training_metrics(probabilities, losses, labels)
    assert metrics["accuracy"] == pytest.approx(2 / 3)
    assert metrics["loss"] == pytest.approx(0.3)


def test_an_epoch_of_nothing_but_overflows_has_diverged() -> None:
    nothing = np.full((3, 2), np.nan, np.float32)
    with pytest.raises(TrainingFailed, match="no prediction of the epoch is finite; lower optimizer.learning_rate"):
        training_metrics(nothing, nothing[:, 0], np.array([0, 1, 0]))
