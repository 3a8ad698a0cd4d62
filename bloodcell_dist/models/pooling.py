"""Max pooling that XLA differentiates repeatably."""

from __future__ import annotations

import keras
import tensorflow as tf


class PairwiseMaxPooling2D(keras.layers.MaxPooling2D):
    """2x2 max pooling as the maximum of four strided slices: float [B, H, W, C] to [B, H // 2, W // 2, C].

    The same function as Keras' layer. Where TensorFlow is to promise equal bits, XLA refuses the gradient of its
    MaxPool ("do not yet have a deterministic XLA implementation", on CPUs too); this one has it. Among equal values the
    first gets the gradient.
    """

    def call(self, inputs: tf.Tensor) -> tf.Tensor:
        """The largest of each 2x2 square; a last odd row or column is left out."""
        height, width = inputs.shape[1] // 2 * 2, inputs.shape[2] // 2 * 2
        corners = [inputs[:, row:height:2, column:width:2] for row in (0, 1) for column in (0, 1)]
        return tf.maximum(tf.maximum(corners[0], corners[1]), tf.maximum(corners[2], corners[3]))
