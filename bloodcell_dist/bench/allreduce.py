"""The sum of the network's gradients over all replicas."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import tensorflow as tf

from bloodcell_dist.bench.figures import AllreduceFigures, Skipped, Sum
from bloodcell_dist.bench.timing import agreed_calls, interleaved, timed
from bloodcell_dist.bench.workbench import Workbench
from bloodcell_dist.training.replication import Replication

LEAST = 3  # sums per turn

_TYPES = {"float32": None, "float16": tf.float16}


def measure_allreduce(bench: Workbench) -> AllreduceFigures | Skipped:
    """As a step sums them, one flat vector, with and without compression. A collective."""
    replication = bench.replication
    replicas = replication.num_replicas
    if replicas == 1:
        return Skipped("one replica: there is nothing to reduce")
    parameters = bench.trainer.parameters
    vector = replication.place(np.ones(parameters, np.float32))
    sums = {name: _summing(replication, vector, kind) for name, kind in _TYPES.items()}

    def seconds(name: str, calls: int) -> float:
        return timed(replication, lambda: [sums[name]() for _ in range(calls)]) / calls

    calls = agreed_calls(replication, max(seconds(name, 1) for name in sums), LEAST)
    measured = interleaved({name: partial(seconds, name, calls) for name in sums}, bench.rounds)
    sizes = {name: parameters * (kind or tf.float32).size for name, kind in _TYPES.items()}
    formats = {name: Sum.of(each, sizes[name], replicas) for name, each in measured.items()}
    return AllreduceFigures(replicas, parameters, formats)


def _summing(replication: Replication, vector: Any, compression: tf.DType | None) -> Callable[[], list[np.ndarray]]:
    """A sum of the vector over all replicas that waits for it; traced and made once in here."""

    def summed(part: tf.Tensor) -> tf.Tensor:
        whole = replication.allreduce([part])[0][0]
        return tf.stack([whole[0], whole[-1]])  # so little is fetched to wait for it

    call = tf.function(lambda: replication.run(summed, vector), autograph=False)
    before, replication.compression = replication.compression, compression  # read while tracing
    try:
        replication.local(call())
    finally:
        replication.compression = before
    return lambda: replication.local(call())
