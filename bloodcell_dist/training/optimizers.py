"""The update rules as pure functions of reduced gradients: Lion, AdamW, SGD.

Keras' optimizers sum gradients across replicas themselves, clip before that sum and ask replica 0 alone whether
gradients are finite (keras#20585 and tests of this stack), so they do not fit the split step. These rules go number by
number, so that several weights may lie in one tensor; `advance.py` applies them to a network.

All tensors are float32. Weight decay is decoupled (Loshchilov and Hutter, arXiv 1711.05101): each update first shrinks
the weight by learning_rate x weight_decay.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import tensorflow as tf

Slots = tuple[tf.Tensor, ...]


@dataclass(frozen=True)
class Rule:
    """An update rule.

    Attributes:
        name: as in `optimizer.name`.
        slot_names: the state kept for each weight, zero at the start, in the weight's shape.
        direction: (gradient, slots, count) to (direction, new slots); the weight moves by -learning_rate x direction.
            Element by element, without norms of a tensor. `count` is the float32 number of this update, from 1; a
            scalar or of a shape that goes with the gradient's. Where it is 0 nobody uses the result.
    """

    name: str
    slot_names: tuple[str, ...]
    direction: Callable[[tf.Tensor, Slots, tf.Tensor], tuple[tf.Tensor, Slots]]


def lion(beta_1: float = 0.9, beta_2: float = 0.99) -> Rule:
    """Lion: the sign of an interpolated momentum (Chen et al., arXiv 2302.06675)."""

    def direction(gradient: tf.Tensor, slots: Slots, count: tf.Tensor) -> tuple[tf.Tensor, Slots]:
        (momentum,) = slots
        step = tf.sign(momentum * beta_1 + gradient * (1.0 - beta_1))
        return step, (momentum * beta_2 + gradient * (1.0 - beta_2),)

    return Rule("lion", ("momentum",), direction)


def adamw(beta_1: float = 0.9, beta_2: float = 0.999, epsilon: float = 1e-7) -> Rule:
    """Adam with bias correction (Kingma and Ba, arXiv 1412.6980); epsilon as in Keras."""

    def direction(gradient: tf.Tensor, slots: Slots, count: tf.Tensor) -> tuple[tf.Tensor, Slots]:
        mean, square = slots
        mean = mean + (gradient - mean) * (1.0 - beta_1)
        square = square + (gradient**2 - square) * (1.0 - beta_2)
        # The correction is on the step, not on each moment, as in Keras, so epsilon weighs the same.
        correction = tf.sqrt(1.0 - beta_2**count) / (1.0 - beta_1**count)
        return correction * mean / (tf.sqrt(square) + epsilon), (mean, square)

    return Rule("adamw", ("mean", "square"), direction)


def sgd(momentum: float = 0.9) -> Rule:
    """Stochastic gradient descent with heavy-ball momentum (0: none)."""

    def direction(gradient: tf.Tensor, slots: Slots, count: tf.Tensor) -> tuple[tf.Tensor, Slots]:
        if not momentum:
            return gradient, ()
        velocity = slots[0] * momentum + gradient
        return velocity, (velocity,)

    return Rule("sgd", ("velocity",) if momentum else (), direction)


def make_rule(name: str, momentum: float = 0.9) -> Rule:
    """The rule `lion`, `adamw` or `sgd`; `momentum` is of sgd."""
    return {"lion": lion, "adamw": adamw, "sgd": lambda: sgd(momentum)}[name]()


def new_weight(
    rule: Rule,
    weight: tf.Tensor,
    gradient: tf.Tensor,
    slots: Slots,
    *,
    learning_rate: tf.Tensor,
    weight_decay: tf.Tensor | float,
    count: tf.Tensor,
) -> tuple[tf.Tensor, Slots]:
    """The weight and slots after one update; rate, decay and count are scalars or broadcast to its shape."""
    direction, slots = rule.direction(gradient, slots, count)
    return weight * (1.0 - learning_rate * weight_decay) - learning_rate * direction, slots


def clip_factor(norm: tf.Tensor, limit: float | None) -> tf.Tensor:
    """What gradients of this joint L2 norm are multiplied with, so that it is at most `limit` (None: 1)."""
    return tf.ones([]) if limit is None else limit / tf.maximum(norm, limit)
