"""A policy of our own layers: pure, stateless and compilable."""

import itertools
from dataclasses import dataclass

import numpy as np
import tensorflow as tf

from bloodcell_dist import randomness
from bloodcell_dist.augment.base import StatelessAugmentation

_WHOLE_BATCH = -1  # the "position" whose draws all examples share


@dataclass(frozen=True)
class FusedPolicy:
    """Layers applied in order, with all random numbers of a step drawn at once.

    Attributes:
        name: of the policy.
        layers: applied in order.
        image_size, num_classes: what batches must look like.
        deterministic: True; the same (seed, step, positions) give the same pictures.
    """

    name: str
    layers: tuple[StatelessAugmentation, ...]
    image_size: int
    num_classes: int
    deterministic: bool = True

    @property
    def group_size(self) -> int:
        """Positions must come in aligned runs of this length; 1 if no layer looks at neighbours."""
        return max((layer.group_size for layer in self.layers), default=1)

    @tf.autograph.experimental.do_not_convert  # nothing here to convert, and converting takes seconds
    def __call__(
        self, images: tf.Tensor, labels: tf.Tensor, seed: int, step: tf.Tensor, positions: tf.Tensor
    ) -> tuple[tf.Tensor, tf.Tensor]:
        """Augment a batch or a replica's slice of it; pure, to be called inside the compiled step.

        Args:
            images: uint8 or float32 [B, image_size, image_size, 3] in [0, 255].
            labels: float32 [B, num_classes], rows sum to 1.
            seed: Python int.
            step: int32 or int64 scalar.
            positions: int32 [B], places in the global batch; whole groups of `group_size` in order.

        Returns:
            Images float32 in [0, 255] and labels, shapes unchanged.

        Raises:
            ValueError: a shape is not the one above (when traced).
        """
        self._check(images, labels)
        images = tf.cast(images, tf.float32)
        if not self.layers:
            return images, labels
        draws = self._draws(seed, step, positions)
        for layer, part in zip(self.layers, draws, strict=True):
            images, labels = layer.transform(images, labels, part)
        return images, labels

    def _draws(self, seed: int, step: tf.Tensor, positions: tf.Tensor) -> list[tf.Tensor]:
        """Draws of each layer, float32 [B, num_draws], those that the whole batch shares repeated in every row."""
        places = tf.concat([[_WHOLE_BATCH], tf.cast(positions, tf.int32)], axis=0)
        keys = randomness.example_keys(seed, step, places, randomness.AUGMENT_STREAM)
        counts = [layer.num_draws for layer in self.layers]
        draws = randomness.uniform(keys, sum(counts))
        shared = [
            [False] + [column < layer.batch_draws for column in range(layer.parameter_draws)] for layer in self.layers
        ]
        columns = np.array(list(itertools.chain.from_iterable(shared)))
        return tf.split(tf.where(columns, draws[:1], draws[1:]), counts, axis=1)

    def _check(self, images: tf.Tensor, labels: tf.Tensor) -> None:
        size = self.image_size
        if images.shape[1:].as_list() != [size, size, 3]:
            raise ValueError(f"policy {self.name!r} expects images [B, {size}, {size}, 3], got shape {images.shape}")
        if labels.shape[1:].as_list() != [self.num_classes]:
            raise ValueError(f"policy {self.name!r} expects labels [B, {self.num_classes}], got shape {labels.shape}")
        batch = images.shape[0]
        if batch is not None and batch % self.group_size:
            raise ValueError(
                f"policy {self.name!r} mixes groups of {self.group_size}; {batch} examples are not a multiple of it"
            )
