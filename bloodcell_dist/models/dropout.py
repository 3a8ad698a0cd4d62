"""Dropout and stochastic depth whose masks depend on (seed, step, position in the global batch) only.

Keras' own layers keep a generator state: a resumed run draws other masks, and MirroredStrategy replicas draw the same
ones. Here the step opens a `randomness` scope with one key per example, and each layer derives its mask from these keys
and its own number.
"""

from __future__ import annotations

import contextlib
import functools
import threading
from collections.abc import Iterator
from typing import Any

import keras
import tensorflow as tf

from bloodcell_dist.models.kernels import one_program
from bloodcell_dist.randomness import DROP_PATH_STREAM, DROPOUT_STREAM, example_keys, uniform

MAX_PATHS = 128  # more residual blocks than any of our networks has


class _Draws:
    """The random numbers of one step for the examples of one replica's pass."""

    def __init__(self, seed: int, step: tf.Tensor, positions: tf.Tensor) -> None:
        self._seed, self._step, self._positions = seed, step, positions

    def of_layer(self, stream: int, count: int) -> tf.Tensor:
        """float32 [B, count] in [0, 1), of one dropout layer."""
        return self._uniform(DROPOUT_STREAM + stream, count)

    @functools.cached_property
    def of_paths(self) -> tf.Tensor:
        """float32 [B, MAX_PATHS] in [0, 1): one per residual block, at once since 50 small draws cost more."""
        return self._uniform(DROP_PATH_STREAM, MAX_PATHS)

    def _uniform(self, stream: int, count: int) -> tf.Tensor:
        def numbers(step: tf.Tensor, positions: tf.Tensor) -> tf.Tensor:
            return uniform(example_keys(self._seed, step, positions, stream), count)

        return one_program(numbers)(self._step, self._positions)  # of some 250 small operations


class _Scope(threading.local):
    """The draws of this thread; tf.distribute traces each replica in a thread of its own."""

    draws: _Draws | None = None
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
    before, _scope.draws = _scope.draws, _Draws(seed, step, positions)
    try:
        yield
    finally:
        _scope.draws = before


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

    Outside of one it is Keras' Dropout, so the network still works with `model.fit`. A frozen layer drops nothing.

    Args:
        rate: share of activations set to zero, 0 to below 1.
        stream: number that tells this layer's draws from those of others in the same network.
    """

    def __init__(self, rate: float, stream: int = 0, **kwargs: Any) -> None:
        super().__init__(rate, **kwargs)
        self.stream = stream

    def call(self, inputs: tf.Tensor, training: bool = False) -> tf.Tensor:
        """Masked and rescaled activations; float [B, ...] as given."""
        if _scope.silent or not self.trainable:
            return inputs
        if not training or not self.rate or _scope.draws is None:
            return super().call(inputs, training=training)
        kept = tf.reshape(self._draw(_scope.draws, inputs) >= self.rate, self._mask_shape(inputs))
        return tf.where(kept, inputs / (1.0 - self.rate), tf.zeros_like(inputs))

    def _draw(self, draws: _Draws, inputs: tf.Tensor) -> tf.Tensor:
        """Uniform numbers, one for each value of the mask."""
        return draws.of_layer(self.stream, inputs.shape[1:].num_elements())

    def _mask_shape(self, inputs: tf.Tensor) -> list[int]:
        return [-1, *inputs.shape[1:]]

    def get_config(self) -> dict[str, Any]:
        """Keras' configuration and the stream number."""
        return {**super().get_config(), "stream": self.stream}


class StochasticDepth(StatelessDropout):
    """Leaves out a residual branch for whole examples ("stochastic depth", Huang et al., arXiv 1603.09382).

    Args:
        rate: share of examples whose branch is left out, 0 to below 1.
        stream: number of the branch in its network, 0 to MAX_PATHS - 1.
    """

    def __init__(self, rate: float, stream: int = 0, **kwargs: Any) -> None:
        kwargs.setdefault("noise_shape", (None, 1, 1, 1))
        super().__init__(rate, stream, **kwargs)

    def _draw(self, draws: _Draws, inputs: tf.Tensor) -> tf.Tensor:
        return draws.of_paths[:, self.stream]

    def _mask_shape(self, inputs: tf.Tensor) -> list[int]:
        return [-1, 1, 1, 1]
