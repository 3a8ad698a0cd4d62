"""Which epoch is the best one."""

import math

import pytest

from bloodcell_dist.evaluation.epochs import Standing


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
    assert standing.best_value == pytest.approx(values[best], nan_ok=True)
