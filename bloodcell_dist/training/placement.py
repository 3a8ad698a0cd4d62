"""Where the training pictures lie: in the memory of every device, or in one file that all ranks of a node share."""

from __future__ import annotations

import logging
import math
import os
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
import tensorflow as tf

from bloodcell_dist import memory
from bloodcell_dist.data.rows import Images
from bloodcell_dist.training.replication import Replication

log = logging.getLogger(__name__)

DEVICE_SHARE = 0.25
"""Of the free memory that the pictures may take; the rest is the network's."""

UNKNOWN_TAKES = 2 << 30
"""Bytes that they may take where nobody tells what is free."""

_NAMES = ("device", "host")


class Batch(NamedTuple):
    """The examples of this worker for one call of the step; b is its share of a global batch.

    Attributes:
        indices: int32 [updates, b].
        pictures: uint8 [updates, b, H, W, 3]; None where the device has the whole set.
        labels: int64 [updates, b], or None likewise.
    """

    indices: tf.Tensor
    pictures: tf.Tensor | None = None
    labels: tf.Tensor | None = None


class DeviceCells:
    """The whole set in the memory of every replica's device: only indices travel.

    Args:
        images: uint8 [N, H, W, 3].
        labels: int [N].
        replication: whose devices.
    """

    def __init__(self, images: Images, labels: np.ndarray, replication: Replication) -> None:
        self.images: Any = replication.place(np.asarray(images))
        # int64: TensorFlow keeps int32 in host memory, so that a GPU's program would fetch the labels at every step.
        self.labels: Any = replication.place(labels.astype(np.int64))
        self._replication = replication

    def feed(self, batches: np.ndarray, lengths: Sequence[int]) -> Iterator[Batch]:
        """This worker's share of global batches, see `Replication.feed`."""
        return (Batch(*parts) for parts in self._replication.feed(batches, lengths))


class HostCells:
    """The set stays where it is, a memory map say; tf.data gathers the pictures of the next batches in its threads.

    Ranks that map the same file share its pages, so a node holds the set once. Arguments as of `DeviceCells`.
    """

    images: Any = None
    labels: Any = None

    def __init__(self, images: Images, labels: np.ndarray, replication: Replication) -> None:
        self._images, self._labels = images, labels.astype(np.int64)
        self._replication = replication

    def feed(self, batches: np.ndarray, lengths: Sequence[int]) -> Iterator[Batch]:
        """This worker's share of global batches and their pictures, see `Replication.feed`."""
        return (Batch(*parts) for parts in self._replication.feed(batches, lengths, self._with_pictures))

    def _with_pictures(self, indices: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
        pictures, labels = tf.numpy_function(self._read, [indices], [tf.uint8, tf.int64], stateful=False)
        pictures.set_shape([*indices.shape, *self._images.shape[1:]])
        labels.set_shape(indices.shape)
        return indices, pictures, labels

    def _read(self, indices: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        pictures = np.asarray(self._images[indices.ravel()])
        return pictures.reshape(*indices.shape, *pictures.shape[1:]), self._labels[indices]


Cells = DeviceCells | HostCells


def place(asked: str, images: Images, labels: np.ndarray, replication: Replication) -> Cells:
    """The training cells where `data.placement` wants them, the same on every worker. A collective.

    Args:
        asked: device, host, or auto: by the memory that is free.
        images, labels, replication: as of `DeviceCells`.
    """
    host = asked == "host"
    if asked == "auto":
        gpus = bool(tf.config.list_logical_devices("GPU"))
        # Without GPUs the replicas of a node share its memory, and so do its ranks.
        copies = 1 if gpus else replication.local_replicas * replication.process.local_size
        needed = copies * math.prod(images.shape)
        free = memory.free_on_gpus(os.environ) if gpus else memory.available_bytes()
        host = replication.any(not fits_device(needed, free))
        told = "" if free is None else f" of {free / 1e9:.1f} GB that are free"
        log.info("data.placement = %s: pictures on the device take %.2f GB%s", _NAMES[host], needed / 1e9, told)
    return (HostCells if host else DeviceCells)(images, labels, replication)


def fits_device(needed: int, free: int | None) -> bool:
    """Whether a set that takes `needed` bytes goes on a device with `free` bytes; None is not known."""
    return needed <= (UNKNOWN_TAKES if free is None else DEVICE_SHARE * free)
