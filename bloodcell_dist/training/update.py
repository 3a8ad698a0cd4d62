"""Applying reduced gradients to a network: unscale, check, clip, update, average.

It runs after the all-reduce, so every replica sees the same gradients and takes the same decisions; a non-finite
gradient on any replica has made the sum non-finite and skips the update on all.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import tensorflow as tf

from bloodcell_dist.training.advance import Advance
from bloodcell_dist.training.optimizers import Rule
from bloodcell_dist.training.packed_state import PackedState
from bloodcell_dist.training.packs import make_packs

INITIAL_LOSS_SCALE = 2.0**15
LOSS_SCALE_PATIENCE = 2000  # finite updates before the scale doubles, as in Micikevicius et al., arXiv 1710.03740


class Update:
    """The state of the optimizer and the function that advances it.

    Args:
        weights: the tf.Variables that train at some time of the run, float32.
        names: a unique name for each, used in checkpoints.
        rule: the update rule.
        weight_decay: decoupled decay of weights with two or more dimensions; biases and norms are left alone.
        clip_norm: limit of the gradients' joint L2 norm after reduction, or None.
        ema_decay: of the exponential moving average of the weights, or None. Early on the decay is
            (1 + n) / (10 + n), so that the average does not remember the random start.
        multipliers: factor of the learning rate for each weight; all 1 when None.
        loss_scaling: dynamic loss scaling, for mixed_float16.
        xla: compile the update.
    """

    def __init__(
        self,
        weights: Sequence[tf.Variable],
        names: Sequence[str],
        rule: Rule,
        *,
        weight_decay: float,
        clip_norm: float | None,
        ema_decay: float | None,
        multipliers: Sequence[float] | None = None,
        loss_scaling: bool = False,
        xla: bool = True,
    ) -> None:
        self.weights = list(weights)
        self._loss_scaling = loss_scaling
        packs = make_packs([weight.shape for weight in weights])
        self._packed = [PackedState(pack, weights, names, rule.slot_names, ema_decay is not None) for pack in packs]
        advance = Advance(
            packs,
            rule,
            decays=[weight_decay if len(weight.shape) > 1 else 0.0 for weight in weights],
            multipliers=multipliers if multipliers is not None else [1.0] * len(weights),
            clip_norm=clip_norm,
            ema_decay=ema_decay,
            xla=xla,
        )
        together = xla and "GPU" in weights[0].device
        self._advance = tf.function(advance, jit_compile=True, autograph=False) if together else advance
        self.loss_scale = tf.Variable(INITIAL_LOSS_SCALE if loss_scaling else 1.0, trainable=False)
        # int64: TensorFlow keeps int32 variables in host memory, also those of a GPU.
        self._finite_updates = tf.Variable(0, dtype=tf.int64, trainable=False)
        self._counts = tf.Variable(tf.zeros([len(self.weights)]), trainable=False)
        self.select(range(len(self.weights)))

    def select(self, active: Sequence[int]) -> None:
        """Train only the weights of these numbers from now on; `apply` then takes their gradients, in this order.

        The state of the others stays, and is taken up again when they come back.
        """
        self._active = list(active)
        self.apply = tf.function(self._apply, autograph=False)

    def begin_scaling(self) -> None:
        """Find the loss scale anew where the state of a run that did not scale its loss was taken up."""
        if self._loss_scaling and float(self.loss_scale.read_value()) == 1.0:
            self.loss_scale.assign(INITIAL_LOSS_SCALE)

    def restart_averages(self) -> None:
        """Let the averages begin at the weights as they are now."""
        for packed in self._packed:
            packed.restart_average()

    def averages(self) -> dict[int, tf.Tensor]:
        """The average of each weight, by its number; empty without EMA."""
        return {place: average for packed in self._packed for place, average in packed.averages().items()}

    def variables(self) -> list[tf.Variable]:
        """Everything that a checkpoint must hold besides the weights, as it lies in memory."""
        return [*self._scalars().values(), *(kept for packed in self._packed for kept in packed.variables().values())]

    def arrays(self) -> dict[str, Any]:
        """The same by name, `momentum/conv/kernel`: shape and values as they are now, whatever comes later."""
        arrays: dict[str, Any] = {name: tf.convert_to_tensor(variable) for name, variable in self._scalars().items()}
        for packed in self._packed:
            arrays |= packed.arrays()
        return arrays

    def restore(self, arrays: Mapping[str, np.ndarray]) -> None:
        """Take up what `arrays` gave."""
        for name, variable in self._scalars().items():
            variable.assign(arrays[name])
        for packed in self._packed:
            packed.restore(arrays)

    def _scalars(self) -> dict[str, tf.Variable]:
        return {"loss_scale": self.loss_scale, "finite_updates": self._finite_updates, "counts": self._counts}

    def _apply(self, gradients: list[tf.Tensor], learning_rate: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        """Advance by one update.

        Args:
            gradients: sums over replicas of the scaled loss's gradients, in the order of the selected weights.
            learning_rate: float32 scalar.

        Returns:
            The gradients' norm before clipping (float32 scalar) and whether the update was made (bool scalar).
        """
        by_weight = dict(zip(self._active, gradients, strict=True))
        norm, finite, counts, after = self._advance(
            [packed.values() for packed in self._packed],
            [packed.join_gradients(by_weight) for packed in self._packed],
            counts=self._counts.read_value(),
            trains=tf.constant(np.isin(range(len(self.weights)), self._active), tf.float32),
            learning_rate=learning_rate,
            scale=self.loss_scale.read_value(),
        )
        for packed, values in zip(self._packed, after, strict=True):
            packed.assign(values, by_weight)
        self._counts.assign(counts)
        self._rescale(finite)
        return norm, finite

    def _rescale(self, finite: tf.Tensor) -> None:
        """Halve the loss scale after an overflow, double it after a long run without one."""
        if not self._loss_scaling:
            return
        finite_updates = tf.where(finite, self._finite_updates + 1, tf.zeros_like(self._finite_updates))
        grow = finite_updates >= LOSS_SCALE_PATIENCE
        scale = tf.where(finite, tf.where(grow, self.loss_scale * 2.0, self.loss_scale), self.loss_scale / 2.0)
        self.loss_scale.assign(tf.maximum(scale, 1.0))
        self._finite_updates.assign(tf.where(grow, tf.zeros_like(finite_updates), finite_updates))
