"""What the steps of the running epoch left behind: kept on the device, read when needed, saved in checkpoints.

The training metrics of an epoch come from the predictions of its steps (augmented pictures, dropout on, weights of the
moment), as Keras reports them. A run that is stopped in mid-epoch takes the record along, so its metrics are those of
an undisturbed run.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from bloodcell_dist.errors import TrainingFailed
from bloodcell_dist.training.replication import Replication
from bloodcell_dist.training.step import StepOutput

SKIPPED_LIMIT = 20  # float16's first loss scale, 2^15, may be halved 15 times before it fits
CHECK_EVERY_STEPS = 20
REMEDIES = "lower optimizer.learning_rate, set optimizer.clip_norm, or use train.precision=float32"


@dataclass
class Times:
    """Where the time of an epoch went on this worker, without the steps that were compiled first.

    Attributes:
        seconds: of all.
        steps, examples: made in that time, over all workers.
        input_s: of waiting for the next batch.
        collective_s: from a replica's own gradients to the sum of all.
    """

    seconds: float = 0.0
    steps: int = 0
    examples: int = 0
    input_s: float = 0.0
    collective_s: float = 0.0

    def per_step(self) -> dict[str, float]:
        """`images_per_s`, and means in seconds: `step_s`, of which `input_s`, `collective_s`, `compute_s` the rest."""
        step_s, input_s, collective_s = (
            value / max(self.steps, 1) for value in (self.seconds, self.input_s, self.collective_s)
        )
        return {
            "images_per_s": self.examples / max(self.seconds, 1e-9),
            "step_s": step_s,
            "input_s": input_s,
            "compute_s": max(step_s - input_s - collective_s, 0.0),
            "collective_s": collective_s,
        }


class EpochRecord:
    """Losses and predictions of the epoch so far, in the order of the index plan."""

    def __init__(self, replication: Replication) -> None:
        self._replication = replication
        self._outputs: list[StepOutput] = []
        self._arrays: dict[str, list[np.ndarray]] = {"losses": [], "probabilities": [], "finite": []}
        self._skipped_in_a_row = 0  # goes on over the ends of epochs, which may be short
        self._last_loss = float("nan")
        self.times = Times()

    def add(self, outputs: Sequence[StepOutput]) -> None:
        """Keep what updates left; every now and then look whether training still moves. Raises TrainingFailed."""
        self._outputs += outputs
        if len(self._outputs) >= CHECK_EVERY_STEPS:
            self.read()

    def read(self, timed: bool = True) -> None:
        """Copy what is on the device; TrainingFailed when the last 20 updates were all skipped.

        timed: whether the time of these updates counts.
        """
        if self._outputs:  # all workers have equally many
            self._copy(timed)
        self._outputs.clear()
        if self._skipped_in_a_row >= SKIPPED_LIMIT:
            raise TrainingFailed(
                f"training diverged: the gradients of the last {SKIPPED_LIMIT} updates were not finite; {REMEDIES}"
            )

    def _copy(self, timed: bool) -> None:
        local = self._replication.local
        losses = np.stack([np.concatenate(local(output.losses)) for output in self._outputs])
        probabilities = np.stack([np.concatenate(local(output.probabilities)) for output in self._outputs])
        losses, probabilities = self._replication.gather([losses, probabilities], axis=1)  # [updates, global batch, …]
        finite = np.stack([local(output.finite)[0] for output in self._outputs])
        if timed:
            self.times.collective_s += float(sum(local(output.collective_s)[0] for output in self._outputs))
        self._last_loss = float(np.mean(losses[-1]))
        self._arrays["losses"].append(losses.ravel())
        self._arrays["probabilities"].append(probabilities.reshape(-1, probabilities.shape[-1]))
        self._arrays["finite"].append(finite)
        self._count_skips(finite)

    def last_loss(self) -> float:
        """Mean loss of this worker's latest step; waits for the device. No collective: workers ask at other times."""
        if self._outputs:
            return float(np.mean(self._replication.local(self._outputs[-1].losses)))
        return self._last_loss

    def losses(self) -> np.ndarray:
        """float32 [examples so far]."""
        return self._joined("losses")

    def probabilities(self) -> np.ndarray:
        """float32 [examples so far, C]."""
        return self._joined("probabilities")

    def skipped_updates(self) -> int:
        """Updates of this epoch left out because gradients were not finite."""
        return int(np.sum(~self._joined("finite")))

    def arrays(self) -> dict[str, np.ndarray]:
        """The record for a checkpoint; empty at an epoch's end."""
        self.read()
        return {f"epoch/{name}": self._joined(name) for name, parts in self._arrays.items() if parts}

    def restore(self, arrays: Mapping[str, np.ndarray]) -> None:
        """Take up the record of a checkpoint."""
        for name, parts in self._arrays.items():
            if f"epoch/{name}" in arrays:
                parts.append(arrays[f"epoch/{name}"])
        self._count_skips(arrays.get("epoch/finite", np.zeros(0, bool)))

    def clear(self) -> None:
        """Begin a new epoch."""
        self.read()
        self.times = Times()
        for parts in self._arrays.values():
            parts.clear()

    def _joined(self, name: str) -> np.ndarray:
        self.read()
        return np.concatenate(self._arrays[name])

    def _count_skips(self, finite: np.ndarray) -> None:
        for value in finite:
            self._skipped_in_a_row = 0 if value else self._skipped_in_a_row + 1
