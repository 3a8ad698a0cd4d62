"""BatchNorm statistics for evaluation: measured anew on training pictures, not left over from training.

Moving averages lag behind the weights (badly so after short runs), mix in augmented pictures and do not fit averaged
weights at all. Before each evaluation they are replaced by the statistics of a fixed list of clean training batches
("precise BN", Wu and Johnson, arXiv 2105.07576).
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Iterator

import keras
import numpy as np
import tensorflow as tf

from bloodcell_dist.models.dropout import without_dropout
from bloodcell_dist.models.finetune import batchnorm_layers


class Recalibration:
    """Sets a network's moving statistics to those of given batches.

    Args:
        model: network with or without BatchNorm layers; frozen ones keep their statistics, as they do in training.
        xla: compile the forward pass.
    """

    def __init__(self, model: keras.Model, xla: bool) -> None:
        self._layers = batchnorm_layers(model)
        self._forward = tf.function(self._batch_statistics(model), jit_compile=xla or None, autograph=False)

    def __call__(self, batches: Iterable[tf.Tensor]) -> None:
        """Recalibrate on pictures float32 or uint8 [B, H, W, 3] in [0, 255], all batches of equal size.

        Means and second moments are averaged over the batches; the variance over all of them follows from both. In
        float64, since that is the small difference of large numbers where a mean is far from zero.
        """
        if not self._layers:
            return
        count, sums = 0, None
        for batch in batches:
            moments = [(mean, variance + mean**2) for mean, variance in _in_double(self._forward(batch))]
            if sums is None:
                sums = moments
            else:
                sums = [(m + n, s + t) for (m, s), (n, t) in zip(sums, moments, strict=True)]
            count += 1
        if sums is None:
            raise ValueError("recalibration needs at least one batch")
        for layer, (mean, square) in zip(self._layers, sums, strict=True):
            variance = np.maximum(square / count - (mean / count) ** 2, 0.0)
            layer.moving_mean.assign((mean / count).astype(np.float32))
            layer.moving_variance.assign(variance.astype(np.float32))

    def _batch_statistics(self, model: keras.Model) -> Callable[[tf.Tensor], list[tuple[tf.Tensor, tf.Tensor]]]:
        def forward(pictures: tf.Tensor) -> list[tuple[tf.Tensor, tf.Tensor]]:
            for layer in self._layers:  # what a diverged step has left there must not survive: 0 x NaN is NaN
                layer.moving_mean.assign(tf.zeros_like(layer.moving_mean.value))
                layer.moving_variance.assign(tf.ones_like(layer.moving_variance.value))
            with self._without_memory(), without_dropout():
                model(tf.cast(pictures, tf.float32), training=True)
            return [(layer.moving_mean.value + 0.0, layer.moving_variance.value + 0.0) for layer in self._layers]

        return forward

    @contextlib.contextmanager
    def _without_memory(self) -> Iterator[None]:
        """Momentum 0 while tracing, so that a pass leaves the statistics of its own batch."""
        momenta = [layer.momentum for layer in self._layers]
        for layer in self._layers:
            layer.momentum = 0.0
        try:
            yield
        finally:
            for layer, momentum in zip(self._layers, momenta, strict=True):
                layer.momentum = momentum


def _in_double(statistics: list[tuple[tf.Tensor, tf.Tensor]]) -> list[tuple[np.ndarray, np.ndarray]]:
    return [(np.asarray(mean, np.float64), np.asarray(variance, np.float64)) for mean, variance in statistics]
