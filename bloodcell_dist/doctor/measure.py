"""What takes TensorFlow, and mostly all ranks together: clocks, the network, the speed of the gradients' sum."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence

import numpy as np
import tensorflow as tf

from bloodcell_dist.cluster.rendezvous import find_network
from bloodcell_dist.cluster.workers import Workers
from bloodcell_dist.doctor.between import Allreduce
from bloodcell_dist.doctor.examination import Deep
from bloodcell_dist.doctor.places import outside
from bloodcell_dist.models import imagenet
from bloodcell_dist.training.replication import Replication
from bloodcell_dist.training.replication.hvd import horovod_parts

CLOCK_ROUNDS = 3
TRIES = 5
LATENCY_CALLS = 20
SIZES = {True: (2**20, 2**26), False: (2**20, 2**24)}
"""Bytes of the vectors, on GPUs and on CPUs."""


def look_deep() -> Deep:
    """What TensorFlow, Horovod and Keras say when they are asked."""
    return Deep(horovod_parts, lambda backbone, path: imagenet.check(path, imagenet.weights_file(backbone)))


def gpus_of_tensorflow() -> int:
    """How many GPUs TensorFlow sees in this process, before each rank takes its own."""
    return len(tf.config.list_physical_devices("GPU"))


def measure_clocks(workers: Workers, now: Callable[[], float] = time.time) -> list[float]:
    """How far each rank's clock is ahead of this one's, at least, seconds; they are read between two messages of it. A
    collective."""
    offsets = [0.0] * workers.world_size
    for _ in range(CLOCK_ROUNDS):
        start = now()
        workers.barrier()
        readings = workers.each(now())
        end = now()
        offsets = [max(pair, key=abs) for pair in zip(offsets, [outside(t, start, end) for t in readings], strict=True)]
    return offsets


def name_network(workers: Workers, node: str) -> list[tuple[str, str, str]]:
    """Of each node with workers: name, address at which others reach it, its interface there. A collective."""
    network, mine = find_network(workers), workers.process.node_rank
    names = workers.each(f"{node} {network.interface(mine) or 'lo'}")
    first = {number: names[network.nodes.index(number)].split() for number in sorted(set(network.nodes))}
    return [(name, network.addresses[number], interface) for number, (name, interface) in first.items()]


def measure_allreduce(replication: Replication, by: str) -> Allreduce:
    """Sum vectors as a training step does. A collective of all replicas."""
    on_gpu = bool(tf.config.get_visible_devices("GPU"))
    one = _Summing(replication, 1)
    one.seconds(LATENCY_CALLS)
    latency_s = sum(one.seconds(LATENCY_CALLS)) / LATENCY_CALLS
    seconds, right = {}, one.is_right
    for size in SIZES[on_gpu]:
        vector = _Summing(replication, size // 4)
        vector.seconds(1)
        replication.barrier()
        seconds[size] = tuple(vector.seconds(TRIES))
        right = right and vector.is_right
    return Allreduce(
        by=by, replicas=replication.num_replicas, on_gpu=on_gpu, latency_s=latency_s, seconds=seconds, right=right
    )


class _Summing:
    """A vector of ones on each replica, summed; its sum is the number of replicas."""

    def __init__(self, replication: Replication, length: int) -> None:
        self._replication = replication
        self._vector = replication.place(np.ones(length, np.float32))
        self._call = tf.function(lambda: replication.run(self._sum, self._vector), autograph=False)
        self.is_right = True

    def _sum(self, vector: tf.Tensor) -> tf.Tensor:
        summed = self._replication.allreduce([vector])[0]
        return tf.stack([summed[0], summed[-1]])  # so little is fetched to wait for it

    def seconds(self, calls: int) -> Sequence[float]:
        """Of each call."""
        taken = []
        for _ in range(calls):
            start = time.perf_counter()
            sums = self._replication.local(self._call())
            taken.append(time.perf_counter() - start)
            self.is_right = self.is_right and all((one == self._replication.num_replicas).all() for one in sums)
        return taken
