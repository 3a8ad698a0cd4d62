"""How replicas work together, behind one small interface.

worker = one process; replica = one copy of the model on one device; rank 0 is the chief. The step computes gradients on
each replica, asks for their sum here, then applies it. Nothing else in the package imports `tf.distribute` or Horovod.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any, Protocol

import numpy as np
import tensorflow as tf

from bloodcell_dist.data.sampling import replica_slice


class Replication(Protocol):
    """What the training needs to know of the other replicas."""

    name: str
    num_replicas: int
    rank: int

    @property
    def is_chief(self) -> bool:
        """Whether this worker writes files and prints."""

    def scope(self) -> contextlib.AbstractContextManager[Any]:
        """Where variables are created."""

    def place(self, array: np.ndarray) -> Any:
        """Put an array into the memory of every replica's device."""

    def feed(self, batches: np.ndarray) -> Iterator[Any]:
        """Slices for this worker's replicas from int32 [steps, global_batch_size], one item per step."""

    def run(self, function: Callable[..., Any], *args: Any) -> Any:
        """Call a function on every local replica; `replica_id` tells them apart inside."""

    def replica_id(self) -> tf.Tensor:
        """int32 scalar, this replica among all; valid inside `run`."""

    def allreduce(self, tensors: list[tf.Tensor]) -> list[tf.Tensor]:
        """Sums over all replicas; inside `run`."""

    def gather(self, values: Any) -> np.ndarray:
        """Values [b, ...] of all replicas in replica order, [b x num_replicas, ...], on every worker."""

    def broadcast(self, model_variables: list[Any]) -> None:
        """Give every replica the chief's values."""

    def barrier(self) -> None:
        """Wait until every worker is here."""

    def any(self, flag: bool) -> bool:
        """Whether the flag is set on any worker; the same answer on all."""


class SingleDevice:
    """One process, one device: every collective is the identity."""

    name = "single"
    num_replicas = 1
    rank = 0
    is_chief = True

    def scope(self) -> contextlib.AbstractContextManager[Any]:
        """No scope is needed: variables live on the default device."""
        return contextlib.nullcontext()

    def place(self, array: np.ndarray) -> tf.Tensor:
        """The array as a tensor on the default device."""
        return tf.constant(array)

    def feed(self, batches: np.ndarray) -> Iterator[tf.Tensor]:
        """int32 [global_batch_size], one per step."""
        slices = replica_slice(batches, self.rank, self.num_replicas)
        yield from tf.data.Dataset.from_tensor_slices(slices).prefetch(tf.data.AUTOTUNE)

    def run(self, function: Callable[..., Any], *args: Any) -> Any:
        """Call it."""
        return function(*args)

    def replica_id(self) -> tf.Tensor:
        """Always 0."""
        return tf.constant(0)

    def allreduce(self, tensors: list[tf.Tensor]) -> list[tf.Tensor]:
        """The tensors as they are."""
        return tensors

    def gather(self, values: Any) -> np.ndarray:
        """The values as an array."""
        return np.asarray(values)

    def broadcast(self, model_variables: list[Any]) -> None:
        """Nothing to do."""

    def barrier(self) -> None:
        """Nothing to wait for."""

    def any(self, flag: bool) -> bool:
        """The flag."""
        return flag
