"""The split step: gradients (compiled), their sum over replicas (not compiled), the update (compiled).

Everything random in it depends on (seed, step, position in the global batch) only, so any number of replicas computes
the same update up to rounding, and a resumed run continues bit for bit.
"""

from __future__ import annotations

from collections.abc import Callable
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
    """What a step leaves on the device; nothing is copied to the host unless asked for."""

    losses: tf.Tensor  # float32 [b], of the augmented examples, dropout on
    probabilities: tf.Tensor  # float32 [b, C]
    gradient_norm: tf.Tensor  # float32 scalar, before clipping
    finite: tf.Tensor  # bool scalar: the update was made


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

    The returned function takes (images uint8 [N, H, W, 3], labels int32 [N], indices int32 [b], first int32 scalar,
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
        with randomness(seed, step, positions), tf.GradientTape(watch_accessed_variables=False) as tape:
            tape.watch(weights)
            logits = model(pictures, training=True)
            losses = loss(targets, logits)
            scaled = tf.reduce_sum(losses) * (loss_scale / global_batch_size)
        return tape.gradient(scaled, weights), losses, tf.nn.softmax(logits)

    return tf.function(gradients, jit_compile=compile.model or None, autograph=False)


class Step:
    """One optimizer update from the indices of this worker's share of a global batch.

    Args:
        gradients: of `gradient_function`; another may be put in its place between two steps.
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
        self.gradients = gradients
        self._update = update
        self._replication = replication
        self._images = replication.place(images)
        self._labels = replication.place(labels.astype(np.int32))
        self._pass_size = per_replica_batch_size
        self._add = tf.function(_add, autograph=False)

    def __call__(self, indices: Any, step: int, learning_rate: float) -> StepOutput:
        """Make update number `step` (from 0) from int32 [per_replica_batch_size x accumulate_steps] indices."""
        return self._replication.run(
            self._on_replica,
            self._images,
            self._labels,
            indices,
            tf.constant(step, tf.int32),
            tf.constant(learning_rate, tf.float32),
        )

    def _on_replica(
        self,
        images: tf.Tensor,
        labels: tf.Tensor,
        indices: tf.Tensor,
        step: tf.Tensor,
        learning_rate: tf.Tensor,
    ) -> StepOutput:
        first = self._replication.replica_id() * indices.shape[0]
        sums: list[tf.Tensor] | None = None
        losses, probabilities = [], []
        for start in range(0, indices.shape[0], self._pass_size):
            part = indices[start : start + self._pass_size]
            gradients, part_losses, part_probabilities = self.gradients(
                images, labels, part, first + start, step, self._update.loss_scale.read_value()
            )
            sums = gradients if sums is None else self._add(sums, gradients)
            losses.append(part_losses)
            probabilities.append(part_probabilities)
        norm, finite = self._update.apply(self._replication.allreduce(sums or []), learning_rate)
        if len(losses) == 1:
            return StepOutput(losses[0], probabilities[0], norm, finite)
        return StepOutput(tf.concat(losses, 0), tf.concat(probabilities, 0), norm, finite)


def _add(ours: list[tf.Tensor], more: list[tf.Tensor]) -> list[tf.Tensor]:
    return [a + b for a, b in zip(ours, more, strict=True)]
