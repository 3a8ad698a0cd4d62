"""Losses on soft labels, per example, in float32."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import tensorflow as tf

LossFunction = Callable[[tf.Tensor, tf.Tensor], tf.Tensor]


def make_loss(
    name: str,
    *,
    label_smoothing: float = 0.0,
    focal_gamma: float = 2.0,
    class_weights: Sequence[float] | None = None,
) -> LossFunction:
    """A function of (labels float32 [B, C] that sum to 1, logits float32 [B, C]) to losses float32 [B].

    Args:
        name: `cross_entropy`, or `focal` (Lin et al., arXiv 1708.02002), which weighs each class term by
            (1 - p)^focal_gamma.
        label_smoothing: share of each label spread over all classes (Szegedy et al., arXiv 1512.00567).
        class_weights: one per class; a mixed label gets the mixture of its classes' weights.
    """

    def loss(labels: tf.Tensor, logits: tf.Tensor) -> tf.Tensor:
        num_classes = logits.shape[-1]
        targets = labels * (1.0 - label_smoothing) + label_smoothing / num_classes
        log_probabilities = tf.nn.log_softmax(logits)
        terms = targets * log_probabilities
        if name == "focal":
            # At p = 1 the power has no finite derivative for focal_gamma below 1, so 1 - p keeps off zero, as in Keras.
            terms *= tf.maximum(1.0 - tf.exp(log_probabilities), 1e-7) ** focal_gamma
        values = -tf.reduce_sum(terms, axis=-1)
        if class_weights is not None:
            values *= tf.reduce_sum(labels * tf.constant(class_weights, tf.float32), axis=-1)
        return values

    return loss
