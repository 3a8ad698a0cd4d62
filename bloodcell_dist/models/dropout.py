"""Dropout whose masks depend on (seed, step, position in the global batch) only.

Keras' own Dropout keeps a generator state: a resumed run draws other masks, and MirroredStrategy replicas draw the same
ones. Here the step opens a `randomness` scope with one key per example, and each layer derives its mask from these keys
and its own stream number.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator
from typing import Any

import keras
import tensorflow as tf

from bloodcell_dist.randomness import DROPOUT_STREAM, example_keys, uniform


class _Scope(threading.local):
    """The draw context of this thread; tf.distribute traces each replica in a thread of its own."""

    current: tuple[int, tf.Tensor, tf.Tensor] | None = None
    silent: bool = False


_scope = _Scope()


@contextlib.contextmanager
def randomness(seed: int, step: tf.Tensor, positions: tf.Tensor) -> Iterator[None]:
    """Give the stateless layers called inside their keys.

    Args:
        seed: of the run.
        step: int scalar, the update being computed.
        positions: int32 [B], place of each example in the global batch.
    """
    before, _scope.current = _scope.current, (seed, step, positions)
    try:
        yield
    finally:
        _scope.current = before


@contextlib.contextmanager
def without_dropout() -> Iterator[None]:
    """Let the stateless layers pass their inputs on unchanged although the network runs in training mode."""
    before, _scope.silent = _scope.silent, True
    try:
        yield
    finally:
        _scope.silent = before


class StatelessDropout(keras.layers.Dropout):
    """Inverted dropout (Srivastava et al., 2014) with stateless masks inside a `randomness` scope.

    Outside of one it is Keras' Dropout, so the network still works with `model.fit`.

    Args:
        rate: share of activations set to zero, 0 to below 1.
        stream: number that tells this layer's draws from those of others in the same network.
    """

    def __init__(self, rate: float, stream: int = 0, **kwargs: Any) -> None:
        super().__init__(rate, **kwargs)
        self.stream = stream

    def call(self, inputs: tf.Tensor, training: bool = False) -> tf.Tensor:
        """Masked and rescaled activations; float [B, ...] as given."""
        if _scope.silent:
            return inputs
        if not training or not self.rate or _scope.current is None:
            return super().call(inputs, training=training)
        seed, step, positions = _scope.current
        keys = example_keys(seed, step, positions, DROPOUT_STREAM + self.stream)
        draws = uniform(keys, inputs.shape[1:].num_elements())
        kept = tf.reshape(draws >= self.rate, [-1, *inputs.shape[1:]])
        return tf.where(kept, inputs / (1.0 - self.rate), tf.zeros_like(inputs))

    def get_config(self) -> dict[str, Any]:
        """Keras' configuration and the stream number."""
        return {**super().get_config(), "stream": self.stream}
