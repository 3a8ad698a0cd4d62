"""The loop over epochs and steps: feed, step, save, stop. What happens at an epoch's end is passed in."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from bloodcell_dist.data.sampling import IndexPlan
from bloodcell_dist.errors import Preempted
from bloodcell_dist.training.preemption import StopRequest
from bloodcell_dist.training.progress import EpochProgress
from bloodcell_dist.training.record import EpochRecord
from bloodcell_dist.training.replication import Replication
from bloodcell_dist.training.stages import Stages
from bloodcell_dist.training.step import StepOutput

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Length:
    """How long the run is.

    Attributes:
        steps_per_epoch: updates per epoch.
        total_steps: updates of the run; the last epoch is shorter when `train.max_steps` cuts it.
    """

    steps_per_epoch: int
    total_steps: int

    @property
    def epochs(self) -> int:
        """Epochs, the last one perhaps cut short."""
        return -(-self.total_steps // self.steps_per_epoch)

    def finished_epochs(self, step: int) -> int:
        """Epochs that are over after `step` updates."""
        return self.epochs if step >= self.total_steps else step // self.steps_per_epoch

    def end_of(self, epoch: int) -> int:
        """Updates made when `epoch` (from 0) is over."""
        return min((epoch + 1) * self.steps_per_epoch, self.total_steps)


@dataclass(frozen=True)
class Actions:
    """What the loop does besides training.

    Attributes:
        end_epoch: called with the epoch (from 0) and the steps made when its steps are done: evaluates and records.
        save: called with the steps made; writes a checkpoint.
    """

    end_epoch: Callable[[int, int], None]
    save: Callable[[int], None]


def run_loop(
    step_function: Callable[[Any, int, float], StepOutput],
    *,
    plan: IndexPlan,
    stages: Stages,
    replication: Replication,
    length: Length,
    first_step: int,
    record: EpochRecord,
    actions: Actions,
    every_steps: int | None,
    stop: StopRequest,
) -> None:
    """Train from `first_step` to the end of the run.

    A checkpoint is written at each epoch's end, after its evaluation, so a checkpoint at an epoch's last step always
    stands for a finished epoch.

    Raises:
        Preempted: a stop was requested; the state is saved.
        TrainingFailed: the training diverged.
    """
    step, traced_at = first_step, {first_step, *stages.first_steps}
    while step < length.total_steps:
        epoch = length.finished_epochs(step)
        start, end = epoch * length.steps_per_epoch, length.end_of(epoch)
        batches = plan.epoch_batches(epoch)[step - start : end - start]
        with EpochProgress(epoch + 1, length.epochs, step - start, end - start) as progress:
            clock = time.monotonic()
            for indices in replication.feed(batches):
                compiles = step in traced_at
                if compiles:
                    _pause(record, clock)
                    clock = time.monotonic()
                record.add(step_function(indices, step, stages.learning_rate(step)))
                if compiles:
                    clock = _after_compiling(record, clock)
                else:
                    record.timed_examples += plan.global_batch_size
                step += 1
                progress.advance(lambda: f"loss {record.last_loss():.4f}")
                due = every_steps is not None and step % every_steps == 0
                stopping = replication.any(stop.is_set)
                if step < end and (due or stopping):
                    _pause(record, clock)
                    actions.save(step)
                    _leave_if(stopping, stop, step)
                    clock = time.monotonic()
            _pause(record, clock)
        actions.end_epoch(epoch, step)
        record.clear()
        actions.save(step)
        _leave_if(replication.any(stop.is_set) and step < length.total_steps, stop, step)


def _after_compiling(record: EpochRecord, clock: float) -> float:
    """Tell how long a stage's first step took; it does not count towards images/s. The new start of the clock."""
    record.read()  # waits for the step, the update included
    now = time.monotonic()
    log.info("first step, with tracing and compiling: %.0f s", now - clock)
    return now


def _pause(record: EpochRecord, clock: float) -> None:
    """Wait for the device and add the time since `clock` to the epoch's."""
    record.read()
    record.seconds += time.monotonic() - clock


def _leave_if(stopping: bool, stop: StopRequest, step: int) -> None:
    if stopping:
        raise Preempted(
            f"stopped by {stop.signal_name or 'another rank'} after step {step}, which is saved; "
            "run the same command again to go on"
        )
