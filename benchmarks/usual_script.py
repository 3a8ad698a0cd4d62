"""The script that most people would write for the same training, kept to compare with.

KerasCV's layers in tf.data with parallel calls, MobileNetV3Small from keras.applications, `model.fit`: the recipe of
the tutorials. The layers are those of `engine: kerascv`, policy `seed`: CutMix, MixUp, FourierMix or nothing per batch,
then RandAugment with three operations, flips, rotation, zoom, saturation, hue, GridMask.
"""

from __future__ import annotations

from collections.abc import Callable

import keras
import numpy as np
import tensorflow as tf
from trainer import CLASSES, stock_classifier

from bloodcell_dist.augment.stock import layers

_SHUFFLE = 2000


def pipeline(images: np.ndarray, labels: np.ndarray, batch: int, policy: str) -> tf.data.Dataset:
    """Augmented batches without end."""
    augmentations = layers(policy, 0.5)

    def augment(pictures: tf.Tensor, targets: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        inputs = {"images": tf.cast(pictures, tf.float32), "labels": targets}
        for layer in augmentations:
            inputs = layer(inputs)
        return inputs["images"], inputs["labels"]

    targets = np.eye(CLASSES, dtype=np.float32)[labels]
    dataset = tf.data.Dataset.from_tensor_slices((images, targets)).shuffle(_SHUFFLE).repeat()
    batches = dataset.batch(batch, drop_remainder=True)
    return batches.map(augment, num_parallel_calls=tf.data.AUTOTUNE).prefetch(tf.data.AUTOTUNE)


class _Clock(keras.callbacks.Callback):
    """Times an epoch from the end of its first batches, so that starting the pipeline does not count."""

    def __init__(self, leave_out: int) -> None:
        super().__init__()
        self._leave_out, self.begun, self.ended = leave_out, 0.0, 0.0

    def on_train_batch_end(self, batch: int, logs: object = None) -> None:
        now = float(tf.timestamp())
        self.begun, self.ended = (now if batch < self._leave_out else self.begun), now


def usual_training(
    images: np.ndarray, labels: np.ndarray, *, backbone: str, batch: int, policy: str
) -> Callable[[int], float]:
    """Seconds of so many updates, the pipeline running; a few more are made before them."""
    model = stock_classifier(backbone, images.shape[1])
    model.compile(
        keras.optimizers.Lion(1e-4, weight_decay=0.1, global_clipnorm=1.0, use_ema=True, ema_momentum=0.998),
        keras.losses.CategoricalCrossentropy(from_logits=True, label_smoothing=0.05),
        metrics=["accuracy"],
        jit_compile=False,  # XLA slows convolutions down on CPUs
    )
    dataset = pipeline(images, labels, batch, policy)

    def seconds(steps: int) -> float:
        clock = _Clock(leave_out=8)
        model.fit(dataset, steps_per_epoch=steps + 8, verbose=0, callbacks=[clock])
        return clock.ended - clock.begun

    return seconds
