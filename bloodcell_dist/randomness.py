"""Stateless random numbers: equal bits for equal (seed, step, position, stream), on any device, at any world size.

Threefry-2x32 with 20 rounds (Salmon, Moraes, Dror and Shaw, "Parallel random numbers: as easy as 1, 2, 3", SC 2011;
the published known answers are in the tests), written in TensorFlow's uint32 operations. TensorFlow's own stateless ops
would not do: their algorithm, and so their bits, may differ between devices and between XLA and the plain kernels.
"""

import functools
import math

import numpy as np
import tensorflow as tf
from scipy import special

AUGMENT_STREAM = 0
DROPOUT_STREAM = 1  # of the first dropout layer; the others count on from here
DROP_PATH_STREAM = 1 << 16  # of all residual branches together

_ROTATIONS = (13, 15, 26, 6, 17, 29, 16, 24)
_KEY_PARITY = 0x1BD11BDA
_WORD = 0xFFFFFFFF
_BETA_TABLE_POINTS = 4097


def _rotate_left(word: tf.Tensor, bits: int) -> tf.Tensor:
    left = tf.bitwise.left_shift(word, tf.constant(bits, tf.uint32))
    right = tf.bitwise.right_shift(word, tf.constant(32 - bits, tf.uint32))
    return tf.bitwise.bitwise_or(left, right)


def threefry2x32(
    key0: tf.Tensor, key1: tf.Tensor, counter0: tf.Tensor, counter1: tf.Tensor
) -> tuple[tf.Tensor, tf.Tensor]:
    """Two random words per counter; all arguments uint32 of shapes that broadcast together."""
    parity = tf.bitwise.bitwise_xor(key0, key1)
    keys = (key0, key1, tf.bitwise.bitwise_xor(parity, tf.constant(_KEY_PARITY, tf.uint32)))
    word0, word1 = counter0 + keys[0], counter1 + keys[1]
    for round_number in range(20):
        word0 = word0 + word1
        word1 = tf.bitwise.bitwise_xor(_rotate_left(word1, _ROTATIONS[round_number % 8]), word0)
        if round_number % 4 == 3:
            injection = round_number // 4 + 1
            word0 = word0 + keys[injection % 3]
            word1 = word1 + keys[(injection + 1) % 3] + tf.constant(injection, tf.uint32)
    return word0, word1


def example_keys(seed: int, step: tf.Tensor, positions: tf.Tensor, stream: int) -> tf.Tensor:
    """One key per example.

    Args:
        seed: any Python int; its low 64 bits count.
        step: int32 or int64 scalar, the number of the optimizer update.
        positions: int32 [B], places in the *global* batch, so that a replica's slice draws what the whole batch would.
        stream: 0 to 2**32 - 1, keeps users of the same example apart (`AUGMENT_STREAM`, `DROPOUT_STREAM`, ...).

    Returns:
        uint32 [B, 2].
    """
    step = tf.cast(step, tf.int64)
    step_low = tf.cast(tf.bitwise.bitwise_and(step, tf.constant(_WORD, tf.int64)), tf.uint32)
    step_high = tf.cast(tf.bitwise.right_shift(step, tf.constant(32, tf.int64)), tf.uint32)
    seed_low = tf.constant(seed & _WORD, tf.uint32)
    seed_high = tf.constant((seed >> 32) & _WORD, tf.uint32)
    step_key = threefry2x32(seed_low, seed_high, step_low, step_high)
    place = tf.bitcast(tf.convert_to_tensor(positions, tf.int32), tf.uint32)
    return tf.stack(threefry2x32(*step_key, place, tf.constant(stream, tf.uint32)), axis=-1)


def uniform(keys: tf.Tensor, count: int) -> tf.Tensor:
    """Uniform numbers, multiples of 2**-24: uint32 keys [B, 2] -> float32 [B, count] in [0, 1).

    The first k of `count` numbers are those that `uniform(keys, k)` gives.
    """
    counters = tf.constant(np.arange((count + 1) // 2, dtype=np.uint32)[None, :])
    words = threefry2x32(keys[:, :1], keys[:, 1:], counters, tf.zeros_like(counters))
    bits = tf.reshape(tf.stack(words, axis=-1), [-1, 2 * counters.shape[1]])[:, :count]
    mantissa = tf.bitwise.right_shift(bits, tf.constant(8, tf.uint32))
    return tf.cast(tf.bitcast(mantissa, tf.int32), tf.float32) * 2.0**-24


def normal(uniforms: tf.Tensor) -> tf.Tensor:
    """Standard normal numbers from uniform ones by Box-Muller: float32 [..., n] -> [..., n], n even."""
    radius, turn = tf.split(uniforms, 2, axis=-1)
    radius = tf.sqrt(-2.0 * tf.math.log(1.0 - radius))  # 1 - u lies in (0, 1], so the logarithm is finite
    angle = 2.0 * math.pi * turn
    return tf.concat([radius * tf.cos(angle), radius * tf.sin(angle)], axis=-1)


def beta(uniforms: tf.Tensor, concentration: float) -> tf.Tensor:
    """Beta(a, a) numbers from uniform ones by the inverse distribution function; same shape, in [0, 1].

    Exact for a = 1 (uniform) and a = 1/2 (arcsine law), else linear in a table of 4,097 quantiles. Unlike gamma
    sampling this compiles with XLA and takes exactly one draw.

    Raises:
        ValueError: `concentration` is not positive.
    """
    if concentration <= 0:
        raise ValueError(f"concentration must be positive, got {concentration}")
    if concentration == 1:
        return uniforms
    if concentration == 0.5:
        return tf.square(tf.sin(0.5 * math.pi * uniforms))
    table = tf.constant(_beta_quantiles(concentration))
    place = uniforms * float(_BETA_TABLE_POINTS - 1)
    below = tf.floor(place)
    index = tf.cast(below, tf.int32)
    low, high = tf.gather(table, index), tf.gather(table, index + 1)
    return low + (place - below) * (high - low)


@functools.cache
def _beta_quantiles(concentration: float) -> np.ndarray:
    shares = np.linspace(0.0, 1.0, _BETA_TABLE_POINTS)
    return special.betaincinv(concentration, concentration, shares).astype(np.float32)
