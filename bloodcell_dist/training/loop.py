"""The loop over epochs and steps: feed, step, save, stop. What happens at an epoch's end is passed in."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from bloodcell_dist.data.sampling import IndexPlan
from bloodcell_dist.training.naming import align_names
from bloodcell_dist.training.placement import Batch
from bloodcell_dist.training.preemption import StopRequest
from bloodcell_dist.training.profile import Profile
from bloodcell_dist.training.progress import EpochProgress
from bloodcell_dist.training.record import EpochRecord, Times
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
        save: called with the steps made; begins to write a checkpoint.
        settle: waits until it is written.
    """

    end_epoch: Callable[[int, int], None]
    save: Callable[[int], None]
    settle: Callable[[], None]


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


Feed = Callable[[np.ndarray, Sequence[int]], Iterator[Batch]]
"""(global batches, steps of each call) to this worker's batches, see `placement`."""


def run_loop(
    step_function: StepFunction,
    *,
    feed: Feed,
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
    profile: Profile | None = None,
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

    step, traced, profile = first_step, set(), profile or Profile(None)
    while step < length.total_steps:
        epoch = length.finished_epochs(step)
        start, end = epoch * length.steps_per_epoch, length.end_of(epoch)
        batches = plan.epoch_batches(epoch)[step - start : end - start]
        calls = call_lengths(step, end, steps_per_call, lambda steps: due(steps) or steps in stages.first_steps)
        size = plan.global_batch_size
        with EpochProgress(
            epoch + 1, length.epochs, step - start, end - start, examples_per_step=size, shown=replication.is_chief
        ) as progress:
            clock = time.monotonic()
            for count, batch in zip(calls, _waiting(feed(batches, calls), record.times), strict=True):
                kind = (stages.at(step).first_step, count)  # each is a program of its own
                compiles = kind not in traced
                traced.add(kind)
                if compiles:
                    _pause(record, clock)
                    align_names()
                    clock = time.monotonic()
                rates = [stages.learning_rate(number) for number in range(step, step + count)]
                with profile.around(step, compiles):
                    record.add(step_function(batch, step, rates))
                if compiles:
                    clock = _after_compiling(record, clock)
                else:
                    record.times.steps += count
                    record.times.examples += count * size
                step += count
                if compiles:
                    progress.leave_out(count)
                progress.advance(count, lambda: f"loss {record.last_loss():.4f}")
                stopping = replication.any(stop.is_set)
                if step < end and (due(step) or stopping):
                    _pause(record, clock)
                    actions.save(step)
                    _leave_if(stopping, step, stop, actions)
                    clock = time.monotonic()
            _pause(record, clock)
        actions.end_epoch(epoch, step)
        record.clear()
        actions.save(step)
        if step < length.total_steps:
            _leave_if(replication.any(stop.is_set), step, stop, actions)
    profile.end()
    actions.settle()


def _leave_if(stopping: bool, step: int, stop: StopRequest, actions: Actions) -> None:
    """Raise Preempted where a stop was asked for, once the state is on disk."""
    if stopping:
        actions.settle()
    stop.leave_if(stopping, f"after step {step}, which is saved")


def _waiting(batches: Iterator[Batch], times: Times) -> Iterator[Batch]:
    """The batches; how long each is waited for counts as input time."""
    while True:
        clock = time.perf_counter()
        batch = next(batches, None)
        times.input_s += time.perf_counter() - clock
        if batch is None:
            return
        yield batch


def _after_compiling(record: EpochRecord, clock: float) -> float:
    """Tell how long a stage's first step took; it does not count towards images/s. The new start of the clock."""
    record.read(timed=False)  # waits for the step, the update included
    now = time.monotonic()
    log.info("first step, with tracing and compiling: %.0f s", now - clock)
    return now


def _pause(record: EpochRecord, clock: float) -> None:
    """Wait for the device and add the time since `clock` to the epoch's."""
    record.read()
    record.times.seconds += time.monotonic() - clock
