"""How big everything is: batches, steps, epochs; worked out once, at the start."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from bloodcell_dist.data.sampling import IndexPlan, nearest_multiples
from bloodcell_dist.errors import UserError
from bloodcell_dist.settings import Settings
from bloodcell_dist.training.loop import Length
from bloodcell_dist.training.stages import Stages, lay_out


@dataclass(frozen=True)
class Arithmetic:
    """Durations and sizes of a run.

    Attributes:
        plan: order of the training examples.
        length: steps and epochs.
        stages: which layers train when, and the learning rate of each step.
        num_replicas: copies of the network that work on an update together.
        accumulate_steps: passes per update.
        per_replica_batch_size: examples per replica and pass.
    """

    plan: IndexPlan
    length: Length
    stages: Stages
    num_replicas: int
    accumulate_steps: int
    per_replica_batch_size: int

    def __str__(self) -> str:
        """`global batch 64 = 32 per replica x 2 replicas x 1 accumulation steps; …`."""
        return (
            f"{self.plan.examples_per_epoch} examples per epoch; global batch {self.plan.global_batch_size} = "
            f"{self.per_replica_batch_size} per replica x {_count(self.num_replicas, 'replica')} x "
            f"{_count(self.accumulate_steps, 'accumulation step')}; {self.plan.steps_per_epoch} steps per epoch, "
            f"{_count(self.length.epochs, 'epoch')}, {_count(self.length.total_steps, 'step')}"
        )


def work_out(settings: Settings, labels: np.ndarray, num_replicas: int) -> Arithmetic:
    """The arithmetic of a run on training examples with labels int [N]. Raises UserError if a batch does not divide."""
    train, optimizer = settings.train, settings.optimizer
    plan = IndexPlan(labels, train.global_batch_size, train.seed, settings.data.balance, settings.data.target_per_class)
    if optimizer.warmup_epochs >= int(train.epochs):
        raise UserError(
            f"optimizer.warmup_epochs={optimizer.warmup_epochs:g} takes up all of train.epochs={train.epochs}; "
            f"use less than {train.epochs}, such as {int(train.epochs) / 10:g}"
        )
    all_steps = plan.steps_per_epoch * int(train.epochs)
    stages = lay_out(
        [(stage.share, stage.train, stage.rate) for stage in settings.finetune.stages],
        total_steps=all_steps,
        learning_rate=optimizer.learning_rate,
        warmup_steps=round(optimizer.warmup_epochs * plan.steps_per_epoch),
        shape=optimizer.schedule,
    )
    return Arithmetic(
        plan,
        Length(plan.steps_per_epoch, min(all_steps, train.max_steps or all_steps)),
        stages,
        num_replicas,
        optimizer.accumulate_steps,
        _per_replica_batch_size(train.global_batch_size, num_replicas, optimizer.accumulate_steps),
    )


def _count(number: int, name: str) -> str:
    """`1 replica`, `2 replicas`."""
    return f"{number} {name}{'' if number == 1 else 's'}"


def _per_replica_batch_size(size: int, num_replicas: int, accumulate_steps: int) -> int:
    parts = num_replicas * accumulate_steps
    if size % parts:
        raise UserError(
            f"train.global_batch_size={size} is not divisible by {_count(num_replicas, 'replica')} x "
            f"optimizer.accumulate_steps={accumulate_steps}; use {nearest_multiples(size, parts)}"
        )
    return size // parts
