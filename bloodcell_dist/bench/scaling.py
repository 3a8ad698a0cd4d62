"""How much faster many replicas train than one, and whether it is the exchange or the machine that costs."""

from __future__ import annotations

from collections.abc import Callable

import tensorflow as tf

from bloodcell_dist.bench.figures import ScalingFigures, Skipped, scaling_figures
from bloodcell_dist.bench.timing import agreed_calls, interleaved, slowest
from bloodcell_dist.bench.workbench import Workbench


def measure_scaling(bench: Workbench) -> ScalingFigures | Skipped:
    """One replica while the others wait, each on its own at once, all together; in turns. A collective.

    Several replicas of one process cannot train apart: the process would have to be several.
    """
    workers = bench.replication
    if workers.num_replicas == 1:
        return Skipped("one replica: start several, with horovodrun say")
    trainers = {"together": bench.trainer, "alone": bench.alone}
    updates_s = max(trainer.train(1).seconds * trainer.updates_per_call for trainer in trainers.values())
    calls = agreed_calls(workers, updates_s)

    def alone() -> float:
        workers.barrier()
        return float(workers.share(bench.alone.train(calls).seconds if workers.is_chief else None))

    def apart() -> float:
        workers.barrier()
        return slowest(workers, bench.alone.train(calls).seconds)

    turns: dict[str, Callable[[], float]] = {"alone": alone}
    if workers.local_replicas == 1:
        turns["apart"] = apart
    turns["together"] = lambda: bench.trainer.train(calls).seconds
    return scaling_figures(
        interleaved(turns, bench.rounds), bench.replica_batch_size, workers.num_replicas, _how(bench)
    )


def _how(bench: Workbench) -> str:
    """What the turns were, in words."""
    workers = bench.replication
    text = f"alone: one replica of rank 0 on its own, the others idle; together: {workers.name}"
    if workers.local_replicas == 1:
        return f"{text}; apart: each rank on its own at the same time"
    shared = "" if tf.config.get_visible_devices("GPU") else "; they share the CPU, of which one alone has all"
    return f"{text}, {workers.local_replicas} replicas per process{shared}"
