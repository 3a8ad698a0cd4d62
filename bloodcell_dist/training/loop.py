"""The loop over epochs and steps: feed, step, save, stop. What happens at an epoch's end is passed in."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from dataclasses import dataclass

from bloodcell_dist.data.sampling import IndexPlan
from bloodcell_dist.training.naming import align_names
from bloodcell_dist.training.preemption import StopRequest
from bloodcell_dist.training.progress import EpochProgress
from bloodcell_dist.training.record import EpochRecord
from bloodcell_dist.training.replication import Replication
from bloodcell_dist.training.stages import Stages
from bloodcell_dist.training.step import StepFunction

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


def call_lengths(first: int, end: int, steps_per_call: int, stops: Callable[[int], bool]) -> list[int]:
    """Updates of each call of the step, from step `first` to `end`: `steps_per_call`, or one by one up to a stop.

    Args:
        first, end: steps made before and after.
        steps_per_call: updates between two looks of the host.
        stops: whether the host has something to do after so many steps.
    """
    lengths, step = [], first
    while step < end:
        full = step + steps_per_call
        whole = full <= end and not any(stops(between) for between in range(step + 1, full))
        lengths.append(steps_per_call if whole else 1)
        step += lengths[-1]
    return lengths


def run_loop(
    step_function: StepFunction,
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
    steps_per_call: int = 1,
) -> None:
    """Train from `first_step` to the end of the run.

    A checkpoint is written at each epoch's end, after its evaluation, so a checkpoint at an epoch's last step always
    stands for a finished epoch.

    Raises:
        Preempted: a stop was requested; the state is saved.
        TrainingFailed: the training diverged.
    """

    def due(steps: int) -> bool:
        return every_steps is not None and steps % every_steps == 0

    step, traced = first_step, set()
    while step < length.total_steps:
        epoch = length.finished_epochs(step)
        start, end = epoch * length.steps_per_epoch, length.end_of(epoch)
        batches = plan.epoch_batches(epoch)[step - start : end - start]
        calls = call_lengths(step, end, steps_per_call, lambda steps: due(steps) or steps in stages.first_steps)
        with EpochProgress(epoch + 1, length.epochs, step - start, end - start, shown=replication.is_chief) as progress:
            clock = time.monotonic()
            for count, indices in zip(calls, replication.feed(batches, calls), strict=True):
                kind = (stages.at(step).first_step, count)  # each is a program of its own
                compiles = kind not in traced
                traced.add(kind)
                if compiles:
                    _pause(record, clock)
                    align_names()
                    clock = time.monotonic()
                rates = [stages.learning_rate(number) for number in range(step, step + count)]
                record.add(step_function(indices, step, rates))
                if compiles:
                    clock = _after_compiling(record, clock)
                else:
                    record.timed_examples += count * plan.global_batch_size
                step += count
                if compiles:
                    progress.leave_out(count)
                progress.advance(count, lambda: f"loss {record.last_loss():.4f}")
                stopping = replication.any(stop.is_set)
                if step < end and (due(step) or stopping):
                    _pause(record, clock)
                    actions.save(step)
                    stop.leave_if(stopping, f"after step {step}, which is saved")
                    clock = time.monotonic()
            _pause(record, clock)
        actions.end_epoch(epoch, step)
        record.clear()
        actions.save(step)
        if step < length.total_steps:
            stop.leave_if(replication.any(stop.is_set), f"after step {step}, which is saved")


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
