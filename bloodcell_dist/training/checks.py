"""The extra checks of --debug: after every step, look at everything that can be looked at."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from bloodcell_dist.errors import TrainingFailed
from bloodcell_dist.training.placement import Batch
from bloodcell_dist.training.step import StepFunction, StepOutput


def with_checks(
    step_function: StepFunction,
    labels: np.ndarray,
    num_classes: int,
    local: Callable[[Any], list[np.ndarray]],
    *,
    loss_scaling: bool = False,
) -> StepFunction:
    """A step that raises TrainingFailed, naming step and examples, as soon as something is off.

    Args:
        step_function: makes updates.
        labels: int [N], of the set the indices point into.
        num_classes: width of the predictions.
        local: takes apart what the replicas of this worker leave, see `Replication.local`.
        loss_scaling: then a gradient that is not finite is part of the game: the scale is being found.
    """

    def checked(batch: Batch, step: int, learning_rates: Sequence[float]) -> list[StepOutput]:
        rows = np.asarray(batch.indices)
        for number, some in enumerate(rows, start=step):
            _expect(bool(np.all((some >= 0) & (some < len(labels)))), number, "an index points outside the set", some)
            mine = labels[some]
            known = bool(np.all((mine >= 0) & (mine < num_classes)))
            _expect(known, number, f"a label is not in 0..{num_classes - 1}", some)
        outputs = step_function(batch, step, learning_rates)
        for number, some, output in zip(range(step, step + len(rows)), rows, outputs, strict=True):
            look_at(output, number, some)
        return outputs

    def look_at(output: StepOutput, step: int, rows: np.ndarray) -> None:
        losses, probabilities = (np.concatenate(local(values)) for values in (output.losses, output.probabilities))
        fits = probabilities.shape == (len(rows), num_classes)
        _expect(fits, step, f"predictions are {probabilities.shape}", rows)
        wrong = ~np.isfinite(losses) | ~np.isfinite(probabilities).all(axis=1)
        _expect(not wrong.any(), step, "the loss is not finite", rows[wrong])
        moved = bool(local(output.finite)[0]) or loss_scaling
        _expect(moved, step, f"the gradient's norm is {float(local(output.gradient_norm)[0])}", rows)

    return checked


def _expect(fine: bool, step: int, problem: str, examples: np.ndarray) -> None:
    if not fine:
        raise TrainingFailed(f"step {step}: {problem}; training examples {examples[:8].tolist()}")
