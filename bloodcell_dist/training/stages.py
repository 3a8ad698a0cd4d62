"""Training in stages: which step belongs to which, its learning rate, and the change from one to the next."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

from bloodcell_dist.errors import UserError
from bloodcell_dist.training.placement import Batch
from bloodcell_dist.training.schedule import Schedule
from bloodcell_dist.training.step import StepFunction, StepOutput


@dataclass(frozen=True)
class Stage:
    """A part of the run in which the same layers train.

    Attributes:
        train: which: `head`, `all` or `last:0.4`.
        first_step, end_step: its updates, the last one not included.
        schedule: learning rate by the update's number within the stage.
    """

    train: str
    first_step: int
    end_step: int
    schedule: Schedule


@dataclass(frozen=True)
class Stages:
    """The stages of a run, one after the other."""

    stages: tuple[Stage, ...]

    def at(self, step: int) -> Stage:
        """The stage that update `step` (from 0) belongs to; the last one for any later step."""
        return next((stage for stage in self.stages if step < stage.end_step), self.stages[-1])

    def before(self, stage: Stage) -> Stage | None:
        """The stage before one of these, None before the first."""
        place = self.stages.index(stage)
        return self.stages[place - 1] if place else None

    def learning_rate(self, step: int) -> float:
        """Of update `step`, which counts from 0 over the whole run."""
        stage = self.at(step)
        return stage.schedule(step - stage.first_step)

    def __str__(self) -> str:
        """`head in steps 1 to 4, all in steps 5 to 12`."""
        return ", ".join(f"{stage.train} in steps {stage.first_step + 1} to {stage.end_step}" for stage in self.stages)

    @property
    def first_steps(self) -> frozenset[int]:
        """Where the stages begin: there the step is traced anew."""
        return frozenset(stage.first_step for stage in self.stages)


def lay_out(
    parts: Sequence[tuple[float, str, float]],
    *,
    total_steps: int,
    learning_rate: float,
    warmup_steps: int,
    shape: Literal["cosine", "constant"],
) -> Stages:
    """Stages from (share, train, rate) triples, each with a warm-up and a decay of its own.

    A warm-up takes at most half of its stage. Raises UserError for a stage that is shorter than an update.
    """
    total = sum(share for share, _, _ in parts)
    ends = [round(total_steps * end / total) for end in itertools.accumulate(share for share, _, _ in parts)]
    stages = []
    for number, ((share, train, rate), first, end) in enumerate(zip(parts, [0, *ends], ends, strict=False)):
        if first == end:
            raise UserError(
                f"finetune.stages[{number}].share={share:g} of {total_steps} steps is less than one step; "
                "make it larger, raise train.epochs, or leave the stage out"
            )
        steps = end - first
        schedule = Schedule(learning_rate * rate, steps, min(warmup_steps, steps // 2), shape)
        stages.append(Stage(train, first, end, schedule))
    return Stages(tuple(stages))


class StagedStep:
    """A step function that changes with the stages.

    Args:
        stages: of the run.
        begin: freezes what does not train in a stage, and lets `step` train the rest; the flag says whether the
            stage begins now, which it does once in a run, or is taken up again.
        step: makes updates of one stage.
    """

    def __init__(self, stages: Stages, begin: Callable[[Stage, bool], None], step: StepFunction) -> None:
        self._stages, self._begin, self._step = stages, begin, step
        self._stage: Stage | None = None

    def enter(self, step: int) -> None:
        """Be in the stage of update `step`: what is evaluated after it has the frozen layers of that stage."""
        stage = self._stages.at(step)
        if stage is not self._stage:
            self._begin(stage, step == stage.first_step)
            self._stage = stage

    def __call__(self, batch: Batch, step: int, learning_rates: Sequence[float]) -> list[StepOutput]:
        """Make updates of one stage, the first of which is number `step` (from 0)."""
        self.enter(step)
        return self._step(batch, step, learning_rates)
