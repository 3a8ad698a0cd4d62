"""Applying reduced gradients to a network: unscale, check, clip, update, average.

One compiled function over all weights. It runs after the all-reduce, so every replica sees the same gradients and takes
the same decisions; a non-finite gradient on any replica has made the sum non-finite and skips the update on all.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import tensorflow as tf

from bloodcell_dist.training.optimizers import Rule, clip_by_global_norm, new_weight

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
        self._names = list(names)
        self._rule = rule
        self._decays = [weight_decay if len(weight.shape) > 1 else 0.0 for weight in weights]
        self._multipliers = list(multipliers) if multipliers is not None else [1.0] * len(self.weights)
        self._clip_norm = clip_norm
        self._ema_decay = ema_decay
        self._loss_scaling = loss_scaling
        self._slots = [
            [tf.Variable(tf.zeros(weight.shape), trainable=False) for _ in rule.slot_names] for weight in weights
        ]
        self.averages = [] if ema_decay is None else [tf.Variable(w, trainable=False) for w in weights]
        self.loss_scale = tf.Variable(INITIAL_LOSS_SCALE if loss_scaling else 1.0, trainable=False)
        # int64: TensorFlow keeps int32 variables in host memory, where a program compiled for a GPU cannot use them.
        self._finite_updates = tf.Variable(0, dtype=tf.int64, trainable=False)
        self._counts = tf.Variable(tf.zeros([len(self.weights)]), trainable=False)
        self._xla = xla
        self.select(range(len(self.weights)))

    def select(self, active: Sequence[int]) -> None:
        """Train only the weights of these numbers from now on; `apply` then takes their gradients, in this order.

        The state of the others stays, and is taken up again when they come back.
        """
        self._active = list(active)
        self.apply = tf.function(self._apply, jit_compile=self._xla or None, autograph=False)

    def begin_scaling(self) -> None:
        """Find the loss scale anew where the state of a run that did not scale its loss was taken up."""
        if self._loss_scaling and float(self.loss_scale.read_value()) == 1.0:
            self.loss_scale.assign(INITIAL_LOSS_SCALE)

    def restart_averages(self) -> None:
        """Let the averages begin at the weights as they are now."""
        for average, weight in zip(self.averages, self.weights, strict=False):  # none without EMA
            average.assign(weight.read_value())

    def state(self) -> dict[str, tf.Variable]:
        """Everything a checkpoint must hold besides the weights, by name."""
        state = {
            "loss_scale": self.loss_scale,
            "finite_updates": self._finite_updates,
            "counts": self._counts,
        }
        for name, slots in zip(self._names, self._slots, strict=True):
            state |= {f"{slot}/{name}": v for slot, v in zip(self._rule.slot_names, slots, strict=True)}
        if self.averages:
            state |= {f"average/{name}": v for name, v in zip(self._names, self.averages, strict=True)}
        return state

    def _apply(self, gradients: list[tf.Tensor], learning_rate: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        """Advance by one update.

        Args:
            gradients: sums over replicas of the scaled loss's gradients, in the order of the selected weights.
            learning_rate: float32 scalar.

        Returns:
            The gradients' norm before clipping (float32 scalar) and whether the update was made (bool scalar).
        """
        gradients = [gradient / self.loss_scale for gradient in gradients]
        gradients, norm = clip_by_global_norm(gradients, self._clip_norm)
        finite = tf.math.is_finite(norm)
        # Each weight has its own count: one that joins later has slots that begin at zero, and AdamW's correction for
        # that goes by the number of its own updates.
        counts = self._counts + tf.constant(np.isin(range(len(self.weights)), self._active), tf.float32)
        for index, gradient in zip(self._active, gradients, strict=True):
            weight = self.weights[index]
            value, slots = new_weight(
                self._rule,
                weight.read_value(),
                gradient,
                tuple(slot.read_value() for slot in self._slots[index]),
                learning_rate=learning_rate * self._multipliers[index],
                weight_decay=self._decays[index],
                count=counts[index],
            )
            weight.assign(tf.where(finite, value, weight))
            for variable, slot in zip(self._slots[index], slots, strict=True):
                variable.assign(tf.where(finite, slot, variable))
        self._counts.assign(tf.where(finite, counts, self._counts))
        self._average(finite)
        self._rescale(finite)
        return norm, finite

    def _average(self, finite: tf.Tensor) -> None:
        """Move the averages towards the weights; that of a weight which has never trained is equal to it and stays."""
        if self._ema_decay is None:
            return
        decays = tf.minimum(self._ema_decay, (1.0 + self._counts) / (10.0 + self._counts))
        for index, (average, weight) in enumerate(zip(self.averages, self.weights, strict=True)):
            moved = average + (weight - average) * (1.0 - decays[index])
            average.assign(tf.where(finite, moved, average))

    def _rescale(self, finite: tf.Tensor) -> None:
        """Halve the loss scale after an overflow, double it after a long run without one."""
        if not self._loss_scaling:
            return
        finite_updates = tf.where(finite, self._finite_updates + 1, tf.zeros_like(self._finite_updates))
        grow = finite_updates >= LOSS_SCALE_PATIENCE
        scale = tf.where(finite, tf.where(grow, self.loss_scale * 2.0, self.loss_scale), self.loss_scale / 2.0)
        self.loss_scale.assign(tf.maximum(scale, 1.0))
        self._finite_updates.assign(tf.where(grow, tf.zeros_like(finite_updates), finite_updates))
