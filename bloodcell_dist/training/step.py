"""The split step: gradients (compiled), their sum over replicas (not compiled), the update (compiled).

Everything random in it depends on (seed, step, position in the global batch) only, so any number of replicas computes
the same update up to rounding, and a resumed run continues bit for bit.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

import keras
import numpy as np
import tensorflow as tf

from bloodcell_dist.models.dropout import randomness
from bloodcell_dist.training.losses import LossFunction
from bloodcell_dist.training.replication import Replication
from bloodcell_dist.training.update import Update


class Policy(Protocol):
    """An augmentation policy, see `augment.policies`."""

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


StepFunction = Callable[[Any, int, Sequence[float]], list[StepOutput]]
"""(indices, first step, learning rates) to what each update leaves, see `Step.__call__`."""


@dataclass(frozen=True)
class Compile:
    """What XLA compiles.

    Attributes:
        model: the whole gradient function; off on CPUs, where XLA slows convolutional training steps down.
        parts: augmentation on its own, where the model is not compiled; twelve times faster on a CPU.
    """

    model: bool
    parts: bool


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
    It returns the gradients of loss_scale x sum(losses) / global_batch_size, in the order of the model's trainable
    variables, and losses float32 [b] and probabilities float32 [b, C].
    """
    weights = [variable.value for variable in model.trainable_variables]
    augment = tf.function(policy, jit_compile=True, autograph=False) if compile.parts else policy

    def gradients(
        images: tf.Tensor,
        labels: tf.Tensor,
        indices: tf.Tensor,
        first: tf.Tensor,
        step: tf.Tensor,
        loss_scale: tf.Tensor,
    ) -> tuple[list[tf.Tensor], tf.Tensor, tf.Tensor]:
        positions = first + tf.range(indices.shape[0])
        pictures = tf.cast(tf.gather(images, indices), tf.float32)
        targets = tf.one_hot(tf.gather(labels, indices), num_classes)
        pictures, targets = augment(pictures, targets, seed, step, positions)
        with (
            randomness(seed, step, positions),
            tf.GradientTape(watch_accessed_variables=False) as tape,
            keras.StatelessScope(),  # BatchNorm's moving statistics stay as they are, see `models.batchnorm`
        ):
            tape.watch(weights)
            logits = model(pictures, training=True)
            losses = loss(targets, logits)
            scaled = tf.reduce_sum(losses) * (loss_scale / global_batch_size)
        return tape.gradient(scaled, weights), losses, tf.nn.softmax(logits)

    return tf.function(gradients, jit_compile=compile.model or None, autograph=False)


class Step:
    """One optimizer update from the indices of this worker's share of a global batch.

    Args:
        gradients: of `gradient_function`.
        update: the optimizer's state.
        replication: sums the gradients.
        images: uint8 [N, H, W, 3], kept in every replica's memory.
        labels: int [N].
        per_replica_batch_size: examples per replica and pass; a replica's share of a global batch is cut into
            accumulation passes of this size.
    """

    def __init__(
        self,
        gradients: Callable[..., Any],
        update: Update,
        replication: Replication,
        *,
        images: np.ndarray,
        labels: np.ndarray,
        per_replica_batch_size: int,
    ) -> None:
        self._update = update
        self._replication = replication
        self._images = replication.place(images)
        # int64: TensorFlow keeps int32 in host memory, so that a GPU's program would fetch the labels at every step.
        self._labels = replication.place(labels.astype(np.int64))
        self._pass_size = per_replica_batch_size
        self.renew(gradients)

    def renew(self, gradients: Callable[..., Any]) -> None:
        """Go on with another gradient function; the next call is traced anew."""
        self._gradients = gradients
        # One graph for everything between two looks of the host: it starts the compiled parts and the collective.
        self._call = tf.function(self._several, autograph=False)

    def __call__(self, indices: tf.Tensor, step: int, learning_rates: Sequence[float]) -> list[StepOutput]:
        """Make updates one after the other, the first of which is number `step` (from 0).

        Args:
            indices: int32 [updates, local_replicas x per_replica_batch_size x accumulate_steps].
            step: number of the first.
            learning_rates: of each.

        Returns:
            For each update what every local replica leaves, as `Replication.local` takes it apart.
        """
        return self._call(indices, tf.constant(step, tf.int32), tf.constant(learning_rates, tf.float32))

    def _several(self, indices: tf.Tensor, first: tf.Tensor, learning_rates: tf.Tensor) -> list[StepOutput]:
        return [
            self._replication.run(
                self._on_replica, self._images, self._labels, indices[place], first + place, learning_rates[place]
            )
            for place in range(indices.shape[0])
        ]

    def _on_replica(
        self,
        images: tf.Tensor,
        labels: tf.Tensor,
        indices: tf.Tensor,
        step: tf.Tensor,
        learning_rate: tf.Tensor,
    ) -> StepOutput:
        indices = self._replication.my_part(indices)
        first = self._replication.replica_id() * indices.shape[0]
        sums: list[tf.Tensor] = []
        losses, probabilities = [], []
        for start in range(0, indices.shape[0], self._pass_size):
            part = indices[start : start + self._pass_size]
            gradients, part_losses, part_probabilities = self._gradients(
                images, labels, part, first + start, step, self._update.loss_scale.read_value()
            )
            sums = [total + more for total, more in zip(sums, gradients, strict=True)] if sums else gradients
            losses.append(part_losses)
            probabilities.append(part_probabilities)
        norm, finite = self._update.apply(self._replication.allreduce(sums), learning_rate)
        return StepOutput(tf.concat(losses, 0), tf.concat(probabilities, 0), norm, finite)
