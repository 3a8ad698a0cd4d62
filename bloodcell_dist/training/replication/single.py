"""One process, one device."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import tensorflow as tf

from bloodcell_dist.training.replication.base import Replication


class SingleDevice(Replication):
    """Every collective is the identity."""

    name = "single"
    num_replicas = 1
    local_replicas = 1

    def scope(self) -> contextlib.AbstractContextManager[Any]:
        """No scope is needed: variables live on the default device."""
        return contextlib.nullcontext()

    def place(self, array: np.ndarray) -> tf.Tensor:
        """The array as a tensor on the default device."""
        return tf.constant(array)

    def run(self, function: Callable[..., Any], *args: Any) -> Any:
        """Call it."""
        return function(*args)

    def replica_id(self) -> int:
        """The rank: a worker has one replica."""
        return self.rank

    def local(self, values: Any) -> list[np.ndarray]:
        """The values of the only replica."""
        return [np.asarray(values)]

    def _reduce(self, flat: tf.Tensor) -> tf.Tensor:
        return flat

    def _each(self, function: Callable[[tf.Tensor], tf.Tensor], batches: Sequence[np.ndarray]) -> list[np.ndarray]:
        return [np.asarray(function(tf.constant(batch))) for batch in batches]
