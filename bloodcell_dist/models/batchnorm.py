"""BatchNorm statistics for evaluation: measured anew on training pictures, not left over from training.

Moving averages lag behind the weights (badly so after short runs), mix in augmented pictures, do not fit averaged
weights at all, and with several replicas each has its own. So training leaves them alone: its steps use the statistics
of each replica's own pass, as ever, and keep none. Before each evaluation, and when a layer that has trained is frozen,
they are replaced by the statistics of a fixed list of clean training batches ("precise BN", Wu and Johnson,
arXiv 2105.07576), equal for any number of replicas.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence

import keras
import numpy as np
import tensorflow as tf

from bloodcell_dist.models.dropout import without_dropout
from bloodcell_dist.models.finetune import batchnorm_layers

Map = Callable[[Callable[[tf.Tensor], tf.Tensor], Sequence[np.ndarray]], list[np.ndarray]]
"""Applies a function to each batch; see `training.replication`."""


def one_by_one(function: Callable[[tf.Tensor], tf.Tensor], batches: Sequence[np.ndarray]) -> list[np.ndarray]:
    """The function of each batch, here."""
    return [np.asarray(function(tf.constant(batch))) for batch in batches]


class Recalibration:
    """Sets a network's moving statistics to those of given batches.

    Args:
        model: network with or without BatchNorm layers; frozen ones keep their statistics, as they do in training.
        xla: compile the forward pass.
    """

    def __init__(self, model: keras.Model, xla: bool) -> None:
        self._layers = batchnorm_layers(model)
        self._forward = tf.function(self._batch_statistics(model), jit_compile=xla or None, autograph=False)

    def __call__(self, batches: Sequence[np.ndarray], map: Map = one_by_one) -> None:
        """Recalibrate on pictures float32 or uint8 [B, H, W, 3] in [0, 255], all batches of equal size.

        Means and second moments are averaged over the batches; the variance over all of them follows from both. In
        float64, since that is the small difference of large numbers where a mean is far from zero.

        Args:
            batches: at least one.
            map: deals them out where there are several replicas.
        """
        if not self._layers:
            return
        statistics = np.stack(map(self._forward, batches)).astype(np.float64)  # [batches, mean and variance of each]
        means, variances = np.split(statistics, 2, axis=1)
        mean = means.mean(axis=0)
        variance = np.maximum((variances + means**2).mean(axis=0) - mean**2, 0.0)
        ends = np.cumsum([layer.moving_mean.shape[0] for layer in self._layers])[:-1]
        for layer, layer_mean, layer_variance in zip(
            self._layers, np.split(mean, ends), np.split(variance, ends), strict=True
        ):
            layer.moving_mean.assign(layer_mean.astype(np.float32))
            layer.moving_variance.assign(layer_variance.astype(np.float32))

    def _batch_statistics(self, model: keras.Model) -> Callable[[tf.Tensor], tf.Tensor]:
        """Pictures to a vector: the means of all layers, then their variances. It leaves no trace in the network."""

        def forward(pictures: tf.Tensor) -> tf.Tensor:
            with keras.StatelessScope() as scope, self._without_memory(), without_dropout():
                for layer in self._layers:  # what a diverged run has left there must not survive: 0 x NaN is NaN
                    layer.moving_mean.assign(tf.zeros_like(layer.moving_mean.value))
                    layer.moving_variance.assign(tf.ones_like(layer.moving_variance.value))
                model(tf.cast(pictures, tf.float32), training=True)
                means = [scope.get_current_value(layer.moving_mean) for layer in self._layers]
                variances = [scope.get_current_value(layer.moving_variance) for layer in self._layers]
            return tf.concat([*means, *variances], axis=0)

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
