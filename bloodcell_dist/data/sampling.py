"""The order of examples as a pure function of (seed, epoch): the index plan.

Only indices travel through the input pipeline. Balancing repeats indices, not pictures; any step can be reached without
replaying the ones before it; and the global batches are the same whatever the number of replicas.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np

from bloodcell_dist.errors import UserError


@dataclass(frozen=True)
class IndexPlan:
    """Which examples make up each global batch of each epoch.

    Attributes:
        labels: int [N], class of each example that takes part.
        global_batch_size: examples per update over all replicas and accumulation steps.
        seed: of the shuffles.
        balance: `oversample` repeats the indices of each class up to `target_per_class` (the largest class when
            None); `none` and `class_weights` use every example once per epoch.
        target_per_class: examples of each class in an epoch, with `oversample`. A larger class is cut to it, with
            other examples each epoch.
    """

    labels: np.ndarray
    global_batch_size: int
    seed: int
    balance: Literal["none", "oversample", "class_weights"] = "none"
    target_per_class: int | None = None

    def __post_init__(self) -> None:
        if len(self.labels) == 0:
            raise UserError("the training set is empty: nothing is left after cleaning and splitting")

    @property
    def examples_per_epoch(self) -> int:
        """Indices in one epoch before the last partial batch is dropped."""
        if self.balance != "oversample":
            return len(self.labels)
        return self._target * int(np.unique(self.labels).size)

    @property
    def steps_per_epoch(self) -> int:
        """Updates per epoch: the last partial batch is dropped, its examples differ each epoch; at least one."""
        return max(1, self.examples_per_epoch // self.global_batch_size)

    def epoch_order(self, epoch: int) -> np.ndarray:
        """All indices of an epoch in training order, int64 [examples_per_epoch]."""
        chosen = self._balanced(epoch) if self.balance == "oversample" else np.arange(len(self.labels))
        return _generator(self.seed, epoch, stream=0).permutation(chosen)

    def epoch_batches(self, epoch: int) -> np.ndarray:
        """The global batches of an epoch, int32 [steps_per_epoch, global_batch_size].

        An epoch shorter than one batch wraps around, so that batch shapes never change.
        """
        wanted = self.steps_per_epoch * self.global_batch_size
        return np.resize(self.epoch_order(epoch), wanted).astype(np.int32).reshape(-1, self.global_batch_size)

    def batch_at(self, step: int) -> np.ndarray:
        """The global batch of an update, int32 [global_batch_size]; steps count from 0 over the whole run."""
        epoch, position = divmod(step, self.steps_per_epoch)
        return self.epoch_batches(epoch)[position]

    @property
    def _target(self) -> int:
        return self.target_per_class or int(np.bincount(self.labels).max())

    def _balanced(self, epoch: int) -> np.ndarray:
        """Indices of every class, each repeated as evenly as possible up to the target.

        Each example appears target // n times; the target % n that appear once more move on from epoch to epoch
        along a fixed random order, so over the epochs no example is favoured by more than one appearance.
        """
        parts = []
        for label in np.unique(self.labels):
            members = np.flatnonzero(self.labels == label)
            repeats, extra = divmod(self._target, len(members))
            order = _generator(self.seed, int(label), stream=1).permutation(members)
            turn = (epoch * extra + np.arange(extra)) % len(members)
            parts += [np.repeat(members, repeats), order[turn]]
        return np.concatenate(parts)


def replica_slice(batch: np.ndarray, replica: int, num_replicas: int) -> np.ndarray:
    """The part of a global batch that a replica works on: contiguous, equal sizes.

    Args:
        batch: int [..., global_batch_size].
        replica: 0 to num_replicas - 1.
    """
    size, rest = divmod(batch.shape[-1], num_replicas)
    if rest:
        raise UserError(
            f"train.global_batch_size={batch.shape[-1]} is not divisible by {num_replicas} replicas; "
            f"use {nearest_multiples(batch.shape[-1], num_replicas)}"
        )
    return batch[..., replica * size : (replica + 1) * size]


def nearest_multiples(size: int, unit: int) -> str:
    """The sizes next to `size` that `unit` divides, for messages: `96 or 104`; 0 is left out."""
    lower = size // unit * unit
    return " or ".join(str(value) for value in (lower, lower + unit) if value)


def class_weights(labels: np.ndarray, num_classes: int) -> np.ndarray:
    """Loss weight of each class, float32 [num_classes]: inverse to its size, 1 on average over the examples."""
    counts = np.bincount(labels, minlength=num_classes)
    present = counts > 0
    weights = np.zeros(num_classes, np.float32)
    weights[present] = len(labels) / (present.sum() * counts[present])
    return weights


def _generator(seed: int, index: int, stream: int) -> np.random.Generator:
    """An independent generator for each (seed, index, stream); Philox counts, so no state is carried along."""
    return np.random.Generator(np.random.Philox(np.random.SeedSequence([seed, stream, index])))
