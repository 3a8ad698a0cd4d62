"""What the workers of a run tell one another between their hosts: flags, settings, predictions.

All of it goes over the lifeline, beside the collectives of Horovod and `tf.distribute`, which carry gradients and
weights: so it works before a network exists, needs no device, and is the same under every launcher.
"""

from __future__ import annotations

import io
import json
from collections.abc import Sequence
from typing import Any

import numpy as np

from bloodcell_dist.cluster.environment import ALONE, ProcessInfo
from bloodcell_dist.cluster.lifeline import Lifeline


class Workers:
    """This process among those of the run; collectives are the identity where it is alone.

    Every method but the properties is a collective: all workers call it, in the same order.

    Args:
        process: who this is.
        lifeline: to the others; None if there are none.
    """

    def __init__(self, process: ProcessInfo = ALONE, lifeline: Lifeline | None = None) -> None:
        self.process = process
        self.lifeline = lifeline

    @property
    def rank(self) -> int:
        """0 to world_size - 1."""
        return self.lifeline.rank if self.lifeline else 0

    @property
    def world_size(self) -> int:
        """Number of workers."""
        return self.lifeline.world_size if self.lifeline else 1

    @property
    def is_chief(self) -> bool:
        """Whether this worker writes files and prints."""
        return self.rank == 0

    def share(self, value: Any = None) -> Any:
        """The chief's value, made of what JSON knows, on every worker; the others' is not looked at."""
        if self.lifeline is None:
            return value
        return json.loads(self.lifeline.share(json.dumps(value).encode() if self.is_chief else None))

    def any(self, flag: bool) -> bool:
        """Whether the flag is set on any worker."""
        if self.lifeline is None:
            return flag
        return b"1" in self.lifeline.exchange(b"1" if flag else b"0")

    def barrier(self) -> None:
        """Wait until every worker is here."""
        self.any(False)

    def each(self, value: Any) -> list[Any]:
        """The value of every worker, made of what JSON knows, in rank order."""
        if self.lifeline is None:
            return [value]
        return [json.loads(data) for data in self.lifeline.exchange(json.dumps(value).encode())]

    def exchange(self, arrays: Sequence[np.ndarray]) -> list[list[np.ndarray]]:
        """The arrays of every worker, in rank order."""
        if self.lifeline is None:
            return [list(arrays)]
        return [_unpack(data) for data in self.lifeline.exchange(_pack(arrays))]

    def gather(self, arrays: Sequence[np.ndarray], axis: int = 0) -> list[np.ndarray]:
        """Each array joined with those of the other workers, in rank order."""
        return [np.concatenate(parts, axis) for parts in zip(*self.exchange(arrays), strict=True)]


def _pack(arrays: Sequence[np.ndarray]) -> bytes:
    file = io.BytesIO()
    for array in arrays:
        np.save(file, array, allow_pickle=False)
    return file.getvalue()


def _unpack(data: bytes) -> list[np.ndarray]:
    file, arrays = io.BytesIO(data), []
    while file.tell() < len(data):
        arrays.append(np.load(file, allow_pickle=False))
    return arrays
