"""The feed: how fast batches come, and whether the step waits for them."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

from bloodcell_dist.bench.figures import Feed, InputFigures, Speed, ratio
from bloodcell_dist.bench.timing import calls_per_turn, interleaved
from bloodcell_dist.bench.trainer import Trainer, Turn, train_in_turns
from bloodcell_dist.bench.workbench import Workbench
from bloodcell_dist.data.rows import is_mapped

LEAST = 20  # batches per turn


def measure_input(bench: Workbench) -> InputFigures:
    """In both placements, if the cells fit on the device: batches that nobody uses, and those of a training."""
    trainers, size = _both(bench), bench.settings.train.global_batch_size
    calls = calls_per_turn(max(trainer.fetch(1) * trainer.updates_per_call for trainer in trainers.values()), LEAST)
    alone = interleaved({name: partial(trainer.fetch, calls) for name, trainer in trainers.items()}, bench.rounds)
    trained = train_in_turns(trainers, bench.rounds)
    return InputFigures(
        global_batch_size=size,
        placements={name: _feed(alone[name], trained[name], size) for name in trainers},
        host_reads_from="memory map" if is_mapped(bench.data.train.images) else "memory",
        left_out=None if "device" in trainers else "device: the cells do not fit there",
    )


def _both(bench: Workbench) -> dict[str, Trainer]:
    own = bench.trainer
    if own.placement == "device":
        return {"device": own, "host": bench.placed("host")}
    other = own if bench.settings.data.placement == "auto" else bench.placed("auto")
    return {other.placement: other, "host": own}


def _feed(alone: Sequence[float], trained: Sequence[Turn], size: int) -> Feed:
    waiting = ratio([turn.waiting_s for turn in trained], [turn.seconds for turn in trained])
    return Feed(Speed.of(alone, size), waiting)
