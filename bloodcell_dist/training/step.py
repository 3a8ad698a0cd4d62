"""The split step: gradients (compiled), their sum over replicas (not compiled), the update (compiled).

Everything random in it depends on (seed, step, position in the global batch) only, so any number of replicas computes
the same update up to rounding, and a resumed run continues bit for bit.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

import keras
import tensorflow as tf

from bloodcell_dist.models.dropout import randomness
from bloodcell_dist.models.kernels import cpu_kernels
from bloodcell_dist.training.losses import LossFunction
from bloodcell_dist.training.placement import Batch, Cells
from bloodcell_dist.training.replication import Replication
from bloodcell_dist.training.update import Update


class Policy(Protocol):
    """An augmentation policy, see `augment.policies`."""

    @property
    def group_size(self) -> int:
        """Positions must come in aligned runs of this length."""

    def __call__(
        self, images: tf.Tensor, labels: tf.Tensor, seed: int, step: tf.Tensor, positions: tf.Tensor
    ) -> tuple[tf.Tensor, tf.Tensor]:
        """Augmented float32 [B, H, W, 3] in [0, 255] and soft labels [B, C]."""


class StepOutput(NamedTuple):
    """What an update leaves on each replica's device; nothing is copied to the host unless asked for."""

    losses: tf.Tensor  # float32 [b], of the augmented examples, dropout on
    probabilities: tf.Tensor  # float32 [b, C]
    gradient_norm: tf.Tensor  # float32 scalar, before clipping
    finite: tf.Tensor  # bool scalar: the update was made
    collective_s: tf.Tensor  # float64 scalar, seconds until the gradients of all replicas were summed


StepFunction = Callable[[Batch, int, Sequence[float]], list[StepOutput]]
"""(batch, first step, learning rates) to what each update leaves, see `Step.__call__`."""


@dataclass(frozen=True)
class Compile:
    """What XLA compiles.

    Attributes:
        model: the whole gradient function; off on CPUs, where XLA slows convolutional training steps down.
        parts: augmentation on its own, where the model is not compiled; twelve times faster on a CPU.
        kernels: what takes its place in the model: `models.kernels`, for CPUs.
    """

    model: bool
    parts: bool
    kernels: bool = False


def gradient_function(
    model: keras.Model,
    policy: Policy,
    loss: LossFunction,
    *,
    num_classes: int,
    global_batch_size: int,
    seed: int,
    compile: Compile,
) -> Callable[..., Any]:
    """Gather, augment, forward, loss and backward as one function of indices.

    The returned function takes (images uint8 [N, H, W, 3], labels int64 [N], indices int32 [b], first int32 scalar,
    step int32 scalar, loss_scale float32 scalar), where `first` is the place of the first index in the global batch.
    Without indices (None) images and labels are the b examples themselves, which the host has gathered. It returns the
    gradients of loss_scale x sum(losses) / global_batch_size, in the order of the model's trainable variables, and
    losses float32 [b] and probabilities float32 [b, C].
    """
    weights = [variable.value for variable in model.trainable_variables]
    augment = augmentation(policy, compile)

    def gradients(
        images: tf.Tensor,
        labels: tf.Tensor,
        indices: tf.Tensor | None,
        first: tf.Tensor,
        step: tf.Tensor,
        loss_scale: tf.Tensor,
    ) -> tuple[list[tf.Tensor], tf.Tensor, tf.Tensor]:
        if indices is not None:
            images, labels = tf.gather(images, indices), tf.gather(labels, indices)
        positions = first + tf.range(labels.shape[0])
        targets = tf.one_hot(labels, num_classes)
        pictures, targets = augment(images, targets, seed, step, positions)
        with (
            randomness(seed, step, positions),
            cpu_kernels(compile.kernels),
            tf.GradientTape(watch_accessed_variables=False) as tape,
            keras.StatelessScope(),  # BatchNorm's moving statistics stay as they are, see `models.batchnorm`
        ):
            tape.watch(weights)
            logits = model(pictures, training=True)
            losses = loss(targets, logits)
            scaled = tf.reduce_sum(losses) * (loss_scale / global_batch_size)
        return tape.gradient(scaled, weights), losses, tf.nn.softmax(logits)

    return tf.function(gradients, jit_compile=compile.model or None, autograph=False)


def augmentation(policy: Policy, compile: Compile) -> Callable[..., tuple[tf.Tensor, tf.Tensor]]:
    """The policy as a step calls it: as it is, or compiled, and applied to as many parts of a batch as threads.

    A program that XLA made for a CPU runs on one thread. The parts are what several replicas would make of the batch.
    """
    if not compile.parts:
        return policy
    compiled = tf.function(policy, jit_compile=True, autograph=False)
    threads = tf.config.threading.get_intra_op_parallelism_threads() or len(os.sched_getaffinity(0))

    def augment(
        images: tf.Tensor, labels: tf.Tensor, seed: int, step: tf.Tensor, positions: tf.Tensor
    ) -> tuple[tf.Tensor, tf.Tensor]:
        groups = images.shape[0] // policy.group_size
        parts = next(count for count in range(threads, 0, -1) if groups % count == 0)
        cut = zip(*(tf.split(values, parts) for values in (images, labels, positions)), strict=True)
        pictures, targets = zip(*(compiled(some, soft, seed, step, places) for some, soft, places in cut), strict=True)
        return tf.concat(pictures, 0), tf.concat(targets, 0)

    return augment


class Step:
    """One optimizer update from this worker's share of a global batch.

    Args:
        gradients: of `gradient_function`.
        update: the optimizer's state.
        replication: sums the gradients.
        cells: where the training pictures lie.
        per_replica_batch_size: examples per replica and pass; a replica's share of a global batch is cut into
            accumulation passes of this size.
    """

    def __init__(
        self,
        gradients: Callable[..., Any],
        update: Update,
        replication: Replication,
        *,
        cells: Cells,
        per_replica_batch_size: int,
    ) -> None:
        self._update = update
        self._replication = replication
        self._cells = cells
        self._pass_size = per_replica_batch_size
        self.renew(gradients)

    def renew(self, gradients: Callable[..., Any]) -> None:
        """Go on with another gradient function; the next call is traced anew."""
        self._gradients = gradients
        # One graph for everything between two looks of the host: it starts the compiled parts and the collective.
        self._call = tf.function(self._several, autograph=False)

    def __call__(self, batch: Batch, step: int, learning_rates: Sequence[float]) -> list[StepOutput]:
        """Make updates one after the other, the first of which is number `step` (from 0).

        Args:
            batch: of `updates` updates, with b = local_replicas x per_replica_batch_size x accumulate_steps.
            step: number of the first.
            learning_rates: of each.

        Returns:
            For each update what every local replica leaves, as `Replication.local` takes it apart.
        """
        return self._call(batch, tf.constant(step, tf.int32), tf.constant(learning_rates, tf.float32))

    def _several(self, batch: Batch, first: tf.Tensor, learning_rates: tf.Tensor) -> list[StepOutput]:
        images, labels, run = self._cells.images, self._cells.labels, self._replication.run
        return [
            run(self._on_replica, images, labels, _rows(batch, place), first + place, learning_rates[place])
            for place in range(batch.indices.shape[0])
        ]

    def _on_replica(
        self,
        images: tf.Tensor | None,
        labels: tf.Tensor | None,
        share: Batch,
        step: tf.Tensor,
        learning_rate: tf.Tensor,
    ) -> StepOutput:
        mine = Batch(*(None if values is None else self._replication.my_part(values) for values in share))
        size = mine.indices.shape[0]
        # A tensor, as a Python number would make a program of its own of every pass and of every rank.
        first = tf.convert_to_tensor(self._replication.replica_id() * size, tf.int32)
        sums: list[tf.Tensor] = []
        losses, probabilities = [], []
        for start in range(0, size, self._pass_size):
            part = _rows(mine, slice(start, start + self._pass_size))
            examples = (images, labels, part.indices) if part.pictures is None else (part.pictures, part.labels, None)
            gradients, part_losses, part_probabilities = self._gradients(
                *examples, first + start, step, self._update.loss_scale.read_value()
            )
            sums = [total + more for total, more in zip(sums, gradients, strict=True)] if sums else gradients
            losses.append(part_losses)
            probabilities.append(part_probabilities)
        sums, collective_s = self._replication.allreduce(sums)
        norm, finite = self._update.apply(sums, learning_rate)
        return StepOutput(tf.concat(losses, 0), tf.concat(probabilities, 0), norm, finite, collective_s)


def _rows(batch: Batch, places: int | slice) -> Batch:
    """Along the first axis of all that is there."""
    return Batch(*(None if values is None else values[places] for values in batch))
