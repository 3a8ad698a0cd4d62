"""The interface, and what is the same for all four ways to run."""

from __future__ import annotations

import abc
import contextlib
import itertools
import math
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import tensorflow as tf

from bloodcell_dist.cluster.workers import Workers
from bloodcell_dist.data.sampling import replica_slice

# Where tf.data tunes itself, the end of a feed may wait for its tuning thread: measured, 18 of 50 feeds of 1 s lost up
# to 1.3 s, and those of minutes lost more. There is nothing to tune in one gather per call.
_UNTUNED = tf.data.Options()
_UNTUNED.autotune.enabled = False


class Replication(Workers, abc.ABC):
    """What the training needs to know of the other replicas.

    Attributes:
        name: as in `distribute.strategy`.
        num_replicas: over all workers.
        local_replicas: of this worker; replica r of worker w is number w x local_replicas + r.
        compression: dtype in which gradients travel, None for float32 as they are.
    """

    name: str
    num_replicas: int
    local_replicas: int
    compression: tf.DType | None = None

    @abc.abstractmethod
    def scope(self) -> contextlib.AbstractContextManager[Any]:
        """Where variables are created."""

    @abc.abstractmethod
    def place(self, array: np.ndarray) -> Any:
        """Put an array into the memory of every local replica's device, as an argument for `run`."""

    @abc.abstractmethod
    def run(self, function: Callable[..., Any], *args: Any) -> Any:
        """Call a function on every local replica; `replica_id` tells them apart inside."""

    @abc.abstractmethod
    def replica_id(self) -> Any:
        """This replica's number among all, int or int32 scalar; valid inside `run`."""

    @abc.abstractmethod
    def local(self, values: Any) -> list[np.ndarray]:
        """What `run` returned in one place, of each local replica in order; waits for the devices."""

    @abc.abstractmethod
    def _reduce(self, flat: tf.Tensor) -> tf.Tensor:
        """The sum of a vector over all replicas; inside `run`."""

    @abc.abstractmethod
    def _each(self, function: Callable[[tf.Tensor], tf.Tensor], batches: Sequence[np.ndarray]) -> list[np.ndarray]:
        """The function of one batch on each local replica."""

    def feed(
        self,
        batches: np.ndarray,
        lengths: Sequence[int],
        add: Callable[[tf.Tensor], tuple[tf.Tensor, ...]] | None = None,
    ) -> Iterator[tuple[tf.Tensor, ...]]:
        """This worker's share of global batches, for one call of the step after the other.

        Args:
            batches: int32 [steps, global_batch_size].
            lengths: steps of each call, `steps` in all.
            add: makes what belongs to the indices of a call, in tf.data's threads while the steps before it run.

        Yields:
            Indices int32 [length, global_batch_size / world_size], or what `add` makes of them, in host memory.
        """
        mine = replica_slice(batches, self.rank, self.world_size)
        start = 0
        for length, equal in itertools.groupby(lengths):
            end = start + length * len(list(equal))
            calls = mine[start:end].reshape(-1, length, mine.shape[1])
            if add is None:
                # A few hundred bytes: to start threads for them at each epoch would take longer.
                for call in calls:
                    with tf.device("CPU:0"):
                        indices = tf.constant(call)
                    yield (indices,)
            else:
                yield from tf.data.Dataset.from_tensor_slices(calls).map(add).prefetch(2).with_options(_UNTUNED)
            start = end

    def my_part(self, share: tf.Tensor) -> tf.Tensor:
        """The slice of this worker's share [b x local_replicas, ...] that the replica works on, [b, ...]; inside `run`.

        It is cut on the host, so that each device gets its own part only.
        """
        size = share.shape[0] // self.local_replicas
        with tf.device("CPU:0"):
            parts = tf.reshape(share, [self.local_replicas, size, *share.shape[1:]])
            return parts[self.replica_id() - self.rank * self.local_replicas]

    def allreduce(self, tensors: Sequence[tf.Tensor]) -> tuple[list[tf.Tensor], tf.Tensor]:
        """Sums over all replicas of float32 tensors, and the seconds that took, float64 scalar; inside `run`.

        They travel as one flat vector: one collective per update, and one order of summation. Horovod fuses single
        tensors as they happen to come, so that the last bits would vary from run to run (horovod#1548). The seconds
        count from this replica's own gradients to the sum, so that they include the wait for slower replicas.
        """
        if self.num_replicas == 1:
            return list(tensors), tf.zeros([], tf.float64)
        flat = tf.concat([tf.reshape(tensor, [-1]) for tensor in tensors], axis=0)
        begun = _time_of(flat)
        if self.compression is None:
            flat = self._reduce(flat)
        else:
            flat = tf.cast(self._reduce(tf.cast(flat, self.compression)), flat.dtype)
        seconds = _time_of(flat) - begun
        parts = tf.split(flat, [math.prod(tensor.shape) for tensor in tensors])
        return [tf.reshape(part, tensor.shape) for part, tensor in zip(parts, tensors, strict=True)], seconds

    def map(self, function: Callable[[tf.Tensor], tf.Tensor], batches: Sequence[np.ndarray]) -> list[np.ndarray]:
        """The function of each batch, in order, on every worker; the batches are dealt out over all replicas.

        Args:
            function: of one batch; no collective in it.
            batches: of one shape.
        """
        first = self.rank * self.local_replicas
        results: list[np.ndarray] = []
        for start in range(first, len(batches), self.num_replicas):
            places = range(start, start + self.local_replicas)
            part = [batches[min(place, len(batches) - 1)] for place in places]  # every replica takes part in a round
            results += self._each(function, part)[: len(batches) - start]
        dealt = self.exchange(results)
        return [dealt[owner][place] for owner, place in map(self._owner, range(len(batches)))]

    def _owner(self, batch: int) -> tuple[int, int]:
        """Which worker has the result of a batch, and at which place among its results."""
        turn, replica = divmod(batch, self.num_replicas)
        worker, place = divmod(replica, self.local_replicas)
        return worker, turn * self.local_replicas + place

    def broadcast(self, variables: Sequence[tf.Variable]) -> None:
        """Give every replica the chief's values, bit by bit. A collective."""
        if self.lifeline is None:
            return
        for variable in variables:
            value = np.asarray(variable.numpy())
            data = self.lifeline.share(value.tobytes() if self.is_chief else None)
            if not self.is_chief:
                variable.assign(np.frombuffer(data, value.dtype).reshape(value.shape))


def _time_of(values: tf.Tensor) -> tf.Tensor:
    """When a vector is there, by the host's clock: float64 scalar, seconds.

    A device computes what it is told later than it is told: so the clock is read when one value has come to the host.
    By Python, since TensorFlow's own Timestamp is refused where it is to promise equal bits.
    """
    with tf.device("CPU:0"):
        return tf.ensure_shape(tf.numpy_function(lambda _: time.perf_counter(), [values[0]], tf.float64), [])
