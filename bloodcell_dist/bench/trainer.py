"""A network that trains as in a run, some updates at a time, with a clock."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np

from bloodcell_dist import memory
from bloodcell_dist.arithmetic import work_out
from bloodcell_dist.assembly import Assembly
from bloodcell_dist.bench.timing import calls_per_turn, interleaved, slowest
from bloodcell_dist.data.prepare import Prepared
from bloodcell_dist.settings import Settings
from bloodcell_dist.training.naming import align_names
from bloodcell_dist.training.placement import Batch, HostCells
from bloodcell_dist.training.record import EpochRecord
from bloodcell_dist.training.replication import Replication
from bloodcell_dist.training.step import StepOutput


@dataclass(frozen=True)
class Turn:
    """Means per update of the slowest worker; `waiting_s`: for the next batch."""

    seconds: float
    waiting_s: float


class Trainer:
    """The network, step and feed of a run; its first step is made at once. Weights are drawn: speed is the same.

    What a run does in its last stage, in which most layers train, is what is measured.

    Args:
        settings: resolved.
        data: the cells.
        replication: how the replicas work together.

    Attributes:
        arithmetic: of the run.
        updates_per_call: train.steps_per_call.
        cells: where the pictures lie.
        placement: device or host.
        first_step_s: with tracing and compiling, of the slowest worker.
        parameters: how many numbers the gradients have.
        peak_memory: (bytes, whose) of the worst worker after the first step.
    """

    def __init__(self, settings: Settings, data: Prepared, replication: Replication) -> None:
        self._replication = replication
        self.updates_per_call = settings.train.steps_per_call
        self.arithmetic = work_out(settings, data.train.labels, replication.num_replicas)
        self._assembly = Assembly(settings, data, self.arithmetic, replication, EpochRecord(replication), None)
        self.cells = self._assembly.cells
        self.placement = "host" if isinstance(self.cells, HostCells) else "device"
        replication.broadcast(self._assembly.state.variables())
        self._calls_made = 0
        self.first_step_s = self._first_step()
        self.parameters = sum(math.prod(variable.shape) for variable in self._assembly.model.trainable_variables)
        used, whose = memory.peak_of_devices()
        self.peak_memory = max(replication.each(used)), whose

    def train(self, calls: int) -> Turn:
        """So many calls of the step, after one more for which nothing is timed. A collective."""
        feed = self.feed(calls + 1)
        self._wait(self._call(next(feed)))
        self._replication.barrier()
        begun, waiting_s = time.perf_counter(), 0.0
        for _ in range(calls):
            asked = time.perf_counter()
            batch = next(feed)
            waiting_s += time.perf_counter() - asked
            outputs = self._call(batch)
        self._wait(outputs)
        seconds = time.perf_counter() - begun
        updates = calls * self.updates_per_call
        return Turn(*(slowest(self._replication, each) / updates for each in (seconds, waiting_s)))

    def fetch(self, calls: int) -> float:
        """Seconds per update for the batches of so many calls, which nobody uses. A collective.

        The clock starts when the first batch is there: then the next ones are only begun.
        """
        feed = self.feed(calls + 1)
        self._replication.barrier()
        next(feed)
        begun = time.perf_counter()
        for _ in feed:
            pass
        seconds = time.perf_counter() - begun
        return slowest(self._replication, seconds) / (calls * self.updates_per_call)

    def feed(self, calls: int) -> Iterator[Batch]:
        """Batches of an epoch, over and over."""
        plan, each = self.arithmetic.plan, self.updates_per_call
        batches = np.resize(plan.epoch_batches(0), (calls * each, plan.global_batch_size))
        return self.cells.feed(batches, [each] * calls)

    def _first_step(self) -> float:
        align_names()
        batch = next(self.feed(1))
        self._replication.barrier()
        begun = time.perf_counter()
        self._wait(self._call(batch))
        return slowest(self._replication, time.perf_counter() - begun)

    def _call(self, batch: Batch) -> Sequence[StepOutput]:
        """The next updates: numbers within the last stage, not its first one, before which statistics may be taken."""
        stages, length = self.arithmetic.stages, self.arithmetic.length
        stage = stages.at(length.total_steps - 1)
        self._calls_made += 1
        made = self._calls_made * self.updates_per_call
        step = stage.first_step + made % (stage.end_step - stage.first_step)
        rates = [stages.learning_rate(number) for number in range(step, step + self.updates_per_call)]
        return self._assembly.step(batch, step, rates)

    def _wait(self, outputs: Sequence[StepOutput]) -> Any:
        return self._replication.local(outputs[-1].losses)


def train_in_turns(trainers: Mapping[str, Trainer], rounds: int) -> dict[str, list[Turn]]:
    """The turns of each; all are as long. A collective of all that train."""
    updates_s = max(trainer.train(1).seconds * trainer.updates_per_call for trainer in trainers.values())
    calls = calls_per_turn(updates_s)
    return interleaved({name: partial(trainer.train, calls) for name, trainer in trainers.items()}, rounds)
