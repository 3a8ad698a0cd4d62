"""Layers that mix pictures and labels of neighbours in the batch: CutMix, MixUp, and a choice of one for the batch."""

from collections.abc import Sequence
from typing import Any

import keras
import tensorflow as tf

from bloodcell_dist import randomness
from bloodcell_dist.augment.base import StatelessAugmentation, per_pixel
from bloodcell_dist.augment.erase import rectangle_sides
from bloodcell_dist.augment.layout import picture_size

GROUP_SIZE = 4


def partners(rotations: tf.Tensor) -> tf.Tensor:
    """Each example's partner: another of its group of four neighbours, and nobody is the partner of two.

    Groups are fixed places in the global batch, so slices that are multiples of four mix the same pairs at any number
    of replicas.

    Args:
        rotations: float32 [B], uniform in [0, 1); only that of each group's first example counts.

    Returns:
        int32 [B], places in the batch.

    Raises:
        ValueError: B is known when traced and is not a multiple of four.
    """
    batch = rotations.shape[0]
    if batch is not None and batch % GROUP_SIZE:
        raise ValueError(f"mixing needs a batch that is a multiple of {GROUP_SIZE}, got {batch} examples")
    first = tf.reshape(rotations, [-1, GROUP_SIZE])[:, :1]
    shift = 1 + tf.cast(tf.floor((GROUP_SIZE - 1) * first), tf.int32)
    member = (tf.range(GROUP_SIZE)[None, :] + shift) % GROUP_SIZE
    start = GROUP_SIZE * tf.range(tf.shape(first)[0])[:, None]
    return tf.reshape(start + member, [-1])


class GroupMix(StatelessAugmentation):
    """Mixes each example with its partner by a share per pixel; the first parameter draw picks the partner."""

    group_size = GROUP_SIZE
    mixes_labels = True

    def __init__(self, alpha: float, **kwargs: Any) -> None:
        """alpha: of the Beta(alpha, alpha) law of the example's own share; 1 is uniform, below 1 favours extremes."""
        if alpha <= 0:
            raise ValueError(f"alpha must be positive, got {alpha}")
        super().__init__(**kwargs)
        self.alpha = float(alpha)

    def own_pixels(self, draws: tf.Tensor, height: int, width: int) -> tuple[tf.Tensor, tf.Tensor]:
        """What stays of each example.

        Args:
            draws: float32 [B, parameter_draws - 1].

        Returns:
            The share per pixel, float32 [B, H or 1, W or 1, 1], and its mean over the picture, float32 [B].
        """
        raise NotImplementedError

    def apply(self, images: tf.Tensor, labels: tf.Tensor, draws: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        partner = partners(draws[:, 0])
        pixels, share = self.own_pixels(draws[:, 1:], *picture_size(images))
        share = share[:, None]
        mixed = pixels * images + (1.0 - pixels) * tf.gather(images, partner)
        return tf.minimum(mixed, 255.0), share * labels + (1.0 - share) * tf.gather(labels, partner)

    def get_config(self) -> dict[str, Any]:
        return {**super().get_config(), "alpha": self.alpha}


@keras.saving.register_keras_serializable(package="bloodcell_dist")
class MixUp(GroupMix):
    """MixUp (arXiv 1710.09412): a weighted mean of two pictures and of their labels."""

    parameter_draws = 2

    def __init__(self, alpha: float = 0.2, **kwargs: Any) -> None:
        super().__init__(alpha, **kwargs)

    def own_pixels(self, draws: tf.Tensor, height: int, width: int) -> tuple[tf.Tensor, tf.Tensor]:
        share = randomness.beta(draws[:, 0], self.alpha)
        return per_pixel(share), share


@keras.saving.register_keras_serializable(package="bloodcell_dist")
class CutMix(GroupMix):
    """CutMix (arXiv 1905.04899): a rectangle of the partner is pasted in.

    Labels follow the pixels that really changed. (KerasCV counts the rectangle's parts outside the picture too.)
    """

    parameter_draws = 4

    def __init__(self, alpha: float = 1.0, **kwargs: Any) -> None:
        super().__init__(alpha, **kwargs)

    def own_pixels(self, draws: tf.Tensor, height: int, width: int) -> tuple[tf.Tensor, tf.Tensor]:
        side = tf.sqrt(1.0 - randomness.beta(draws[:, 0], self.alpha))
        rows = rectangle_sides(tf.floor(height * draws[:, 1]), tf.floor(height * side), height)
        columns = rectangle_sides(tf.floor(width * draws[:, 2]), tf.floor(width * side), width)
        rows, columns = tf.cast(rows, tf.float32), tf.cast(columns, tf.float32)
        pasted = tf.reduce_sum(rows, axis=1) * tf.reduce_sum(columns, axis=1) / (height * width)
        return 1.0 - (rows[:, :, None] * columns[:, None, :])[..., None], 1.0 - pasted


@keras.saving.register_keras_serializable(package="bloodcell_dist")
class BatchChoice(StatelessAugmentation):
    """Applies one of several layers, or none, to the whole batch, each as likely.

    One draw that the whole batch shares decides, so every slice of the batch goes the same way, and only the chosen
    layer is computed.
    """

    batch_draws = 1

    def __init__(self, layers: Sequence[StatelessAugmentation], **kwargs: Any) -> None:
        """layers: the alternatives; "none" is one more."""
        super().__init__(**kwargs)
        self.layers = list(layers)
        self.parameter_draws = self.batch_draws + max(layer.num_draws for layer in layers)
        self.group_size = max(layer.group_size for layer in layers)
        self.mixes_labels = any(layer.mixes_labels for layer in layers)

    def apply(self, images: tf.Tensor, labels: tf.Tensor, draws: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        def branch(layer: StatelessAugmentation) -> Any:
            return lambda: layer.transform(images, labels, draws[:, 1 : 1 + layer.num_draws])

        branches = [branch(layer) for layer in self.layers] + [lambda: (images, labels)]
        chosen = tf.cast(tf.floor(len(branches) * draws[0, 0]), tf.int32)
        return tf.switch_case(chosen, branches)

    def get_config(self) -> dict[str, Any]:
        layers = [keras.saving.serialize_keras_object(layer) for layer in self.layers]
        return {**super().get_config(), "layers": layers}

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> "BatchChoice":
        layers = [keras.saving.deserialize_keras_object(layer) for layer in config["layers"]]
        return cls(**{**config, "layers": layers})
