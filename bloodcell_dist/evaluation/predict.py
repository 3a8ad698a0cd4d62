"""Predictions for a whole set: every example once, batches of one shape, the padding left out."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import keras
import numpy as np
import tensorflow as tf

from bloodcell_dist.data.rows import Images
from bloodcell_dist.errors import UserError
from bloodcell_dist.training.replication import Replication, SingleDevice

Forward = Callable[[tf.Tensor], tf.Tensor]


def make_forward(model: keras.Model, *, logits: bool, xla: bool) -> Forward:
    """The network in inference mode: uint8 or float32 [B, H, W, 3] in [0, 255] to float32 probabilities [B, C].

    Args:
        model: gives logits or probabilities.
        logits: whether it gives logits.
        xla: compile it.
    """

    def forward(images: tf.Tensor) -> tf.Tensor:
        outputs = tf.cast(model(tf.cast(images, tf.float32), training=False), tf.float32)
        return tf.nn.softmax(outputs) if logits else outputs

    return tf.function(forward, jit_compile=xla or None, autograph=False, reduce_retracing=False)


def predict(forward: Forward, images: Images, batch_size: int, replication: Replication | None = None) -> np.ndarray:
    """Probabilities float32 [N, C] for images uint8 [N, H, W, 3], on every worker; UserError if there are none.

    Args:
        forward: of `make_forward`.
        images: the whole set.
        batch_size: examples per replica and pass.
        replication: over whose replicas the batches are dealt out; None predicts here. A collective.
    """
    if len(images) == 0:
        raise UserError("there are no pictures to predict: the set is empty; give at least one picture")
    replication = replication or SingleDevice()
    share = -(-len(images) // replication.num_replicas)
    batches = [batch for batch, _ in padded_batches(images, min(batch_size, round_up(share)))]
    return np.concatenate(replication.map(forward, batches))[: len(images)]


def round_up(count: int) -> int:
    """A batch size that holds `count` examples and at most a quarter more: four sizes between powers of two.

    A handful of cells, or a replica's small share of a set, does not cost a full batch, and sets of many sizes do not
    each trace the network anew.
    """
    unit = max(1, (1 << (count - 1).bit_length()) // 8)
    return -(-count // unit) * unit


def padded_batches(images: Images, batch_size: int) -> Iterator[tuple[np.ndarray, int]]:
    """Batches [batch_size, ...] and how many of their rows count; the last one repeats its last row."""
    for start in range(0, len(images), batch_size):
        batch = np.asarray(images[start : start + batch_size])
        count = len(batch)
        if count < batch_size:
            batch = np.concatenate([batch, np.repeat(batch[-1:], batch_size - count, axis=0)])
        yield batch, count
