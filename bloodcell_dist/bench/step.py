"""The step of a training: how fast it is, and what augmentation adds to it."""

from __future__ import annotations

from collections.abc import Sequence

from bloodcell_dist.bench.figures import Speed, Spread, StepFigures, ratio
from bloodcell_dist.bench.trainer import Trainer, train_in_turns
from bloodcell_dist.bench.workbench import Workbench


def measure_step(bench: Workbench) -> StepFigures:
    """With the policy of the settings and without any, in turns. A collective."""
    trainer, policy = bench.trainer, bench.settings.augment.policy
    trainers: dict[str, Trainer] = {policy: trainer} if policy == "none" else {policy: trainer, "none": bench.plain}
    seconds = {name: [turn.seconds for turn in turns] for name, turns in train_in_turns(trainers, bench.rounds).items()}
    size, (peak, whose) = bench.settings.train.global_batch_size, trainer.peak_memory
    return StepFigures(
        policy=policy,
        global_batch_size=size,
        augmented=Speed.of(seconds[policy], size),
        plain=None if policy == "none" else Speed.of(seconds["none"], size),
        augmentation_share=None if policy == "none" else _added(seconds[policy], seconds["none"]),
        first_step_s=trainer.first_step_s,
        peak_memory_mb=peak / 1e6,
        peak_memory_of=whose,
    )


def _added(augmented: Sequence[float], plain: Sequence[float]) -> Spread:
    """The share of the time that is gone without augmentation."""
    return ratio([long - short for long, short in zip(augmented, plain, strict=True)], augmented)
