"""The extra checks of --debug: after every step, look at everything that can be looked at."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from bloodcell_dist.errors import TrainingFailed
from bloodcell_dist.training.step import StepOutput


def with_checks(
    step_function: Callable[[Any, int, float], StepOutput],
    labels: np.ndarray,
    num_classes: int,
    *,
    loss_scaling: bool = False,
) -> Callable[[Any, int, float], StepOutput]:
    """A step that raises TrainingFailed, naming step and examples, as soon as something is off.

    Args:
        step_function: (indices, step, learning_rate) to StepOutput.
        labels: int [N], of the set the indices point into.
        num_classes: width of the predictions.
        loss_scaling: then a gradient that is not finite is part of the game: the scale is being found.
    """

    def checked(indices: Any, step: int, learning_rate: float) -> StepOutput:
        rows = np.asarray(indices)
        _expect(bool(np.all((rows >= 0) & (rows < len(labels)))), step, "an index points outside the set", rows)
        mine = labels[rows]
        _expect(
            bool(np.all((mine >= 0) & (mine < num_classes))),
            step,
            f"a label is not in 0..{num_classes - 1}",
            rows,
        )
        output = step_function(indices, step, learning_rate)
        losses, probabilities = np.asarray(output.losses), np.asarray(output.probabilities)
        _expect(
            probabilities.shape == (len(rows), num_classes),
            step,
            f"predictions are {probabilities.shape}",
            rows,
        )
        wrong = ~np.isfinite(losses) | ~np.isfinite(probabilities).all(axis=1)
        _expect(not wrong.any(), step, "the loss is not finite", rows[wrong])
        moved = bool(output.finite) or loss_scaling
        _expect(moved, step, f"the gradient's norm is {float(output.gradient_norm)}", rows)
        return output

    return checked


def _expect(fine: bool, step: int, problem: str, examples: np.ndarray) -> None:
    if not fine:
        raise TrainingFailed(f"step {step}: {problem}; training examples {examples[:8].tolist()}")
