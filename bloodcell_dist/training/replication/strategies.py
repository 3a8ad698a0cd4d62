"""`tf.distribute`: all GPUs of one process (MirroredStrategy), of several processes (MultiWorkerMirroredStrategy)."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import tensorflow as tf

from bloodcell_dist.cluster.environment import ProcessInfo
from bloodcell_dist.cluster.lifeline import Lifeline
from bloodcell_dist.training.replication.base import Replication


class Mirrored(Replication):
    """A replica on each device of a strategy.

    Args:
        name: `mirrored` or `multiworker`.
        strategy: of `tf.distribute`; variables must be created in its scope.
    """

    def __init__(
        self, name: str, strategy: tf.distribute.Strategy, process: ProcessInfo, lifeline: Lifeline | None = None
    ) -> None:
        super().__init__(process, lifeline)
        self.name = name
        self._strategy = strategy
        self._graphs: dict[Callable[..., Any], Callable[[Any], Any]] = {}
        self._devices = list(strategy.extended.worker_devices)
        self.num_replicas = strategy.num_replicas_in_sync
        self.local_replicas = len(self._devices)

    def scope(self) -> contextlib.AbstractContextManager[Any]:
        """The strategy's."""
        scope: contextlib.AbstractContextManager[Any] = self._strategy.scope()
        return scope

    def place(self, array: np.ndarray) -> Any:
        """A copy on each device."""
        return self._spread([array] * self.local_replicas)

    def run(self, function: Callable[..., Any], *args: Any) -> Any:
        """Call it on every device; what it returns is one value per replica."""
        return self._strategy.run(function, args)

    def replica_id(self) -> Any:
        """Of the replica whose function runs."""
        return tf.distribute.get_replica_context().replica_id_in_sync_group

    def local(self, values: Any) -> list[np.ndarray]:
        """The values of the replicas of this worker."""
        return [np.asarray(value) for value in self._strategy.experimental_local_results(values)]

    def _reduce(self, flat: tf.Tensor) -> tf.Tensor:
        return tf.distribute.get_replica_context().all_reduce(tf.distribute.ReduceOp.SUM, flat)

    def _each(self, function: Callable[[tf.Tensor], tf.Tensor], batches: Sequence[np.ndarray]) -> list[np.ndarray]:
        return self.local(self._on_all(function)(self._spread(batches)))

    def _on_all(self, function: Callable[[tf.Tensor], tf.Tensor]) -> Callable[[Any], Any]:
        """The function on every replica at once, as one graph.

        `run` would lift a compiled function over all replicas, and XLA refuses a program that spans devices: so it gets
        a plain one that calls it.
        """
        if function not in self._graphs:
            self._graphs[function] = tf.function(
                lambda batches: self.run(lambda batch: function(batch), batches), autograph=False
            )
        return self._graphs[function]

    def _spread(self, arrays: Sequence[np.ndarray]) -> Any:
        """One array on each device of this worker."""

        def on_device(context: Any) -> tf.Tensor:
            place = context.replica_id_in_sync_group % self.local_replicas
            with tf.device(self._devices[place]):  # else all would lie on the first device
                return tf.identity(tf.constant(arrays[place]))

        return self._strategy.experimental_distribute_values_from_function(on_device)


def mirrored(process: ProcessInfo, devices: int | None) -> Mirrored:
    """All GPUs of this process, or the first `devices` of them; on a CPU so many logical devices share it.

    Call it before TensorFlow has been used: logical devices cannot be made later.
    """
    gpus = tf.config.list_physical_devices("GPU")
    if not gpus:
        count = devices or 1
        cpu = tf.config.list_physical_devices("CPU")[0]
        if len(tf.config.get_logical_device_configuration(cpu) or [None]) != count:
            tf.config.set_logical_device_configuration(cpu, [tf.config.LogicalDeviceConfiguration()] * count)
    kind, count = ("GPU", devices or len(gpus)) if gpus else ("CPU", devices or 1)
    strategy = tf.distribute.MirroredStrategy([f"{kind}:{number}" for number in range(count)])
    return Mirrored("mirrored", strategy, process)


def meet() -> tf.distribute.Strategy:
    """The strategy of all workers that TF_CONFIG names; waits until each is there."""
    return tf.distribute.MultiWorkerMirroredStrategy()


def tell_address(strategy: tf.distribute.Strategy, address: bytes | None, size: int) -> bytes:
    """The chief's bytes, at most `size`, on every worker."""
    mine = np.frombuffer((address or b"").ljust(size, b"\0"), np.uint8).astype(np.int32)

    def summed() -> tf.Tensor:
        context = tf.distribute.get_replica_context()
        first = tf.equal(context.replica_id_in_sync_group, 0)  # the chief may have several replicas
        return context.all_reduce(tf.distribute.ReduceOp.SUM, tf.where(first, mine, 0))

    found = strategy.experimental_local_results(tf.function(lambda: strategy.run(summed), autograph=False)())[0]
    return np.asarray(found).astype(np.uint8).tobytes().rstrip(b"\0")
