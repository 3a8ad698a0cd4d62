"""The base of the augmentation layers: a pure `transform` of (images, labels, draws) inside a KerasCV layer."""

import os
from collections.abc import Sequence
from typing import Any

import tensorflow as tf

from bloodcell_dist.augment.layout import from_rows, rows, settled
from bloodcell_dist.imports import put_off

with put_off():
    from keras_cv.layers import VectorizedBaseImageAugmentationLayer

Range = float | Sequence[float]


class StatelessAugmentation(VectorizedBaseImageAugmentationLayer):
    """A layer whose picture is a pure function of its input and of uniform numbers drawn beforehand.

    Training calls `transform` with draws keyed by (seed, step, position in the global batch). A plain call, as in any
    KerasCV or tf.data pipeline, draws from KerasCV's own generator and takes the same path.

    Subclasses set `parameter_draws` and implement `apply`. `num_draws` counts those plus one for `probability`.

    Attributes:
        parameter_draws: uniform numbers that `apply` reads per example.
        batch_draws: how many of the leading parameter draws the whole batch shares (all rows are equal).
        group_size: the batch must be a multiple of it; neighbours in such a group may be mixed, or depend on each
            other's draws.
        mixes_labels: whether labels change.
    """

    parameter_draws: int = 0
    batch_draws: int = 0
    group_size: int = 1
    mixes_labels: bool = False

    def __init__(self, probability: float = 1.0, seed: int | None = None, **kwargs: Any) -> None:
        """
        Args:
            probability: share of the examples that the layer is applied to, 0 to 1.
            seed: of the generator behind plain calls; None draws one. `transform` never uses it.
        """
        if not 0.0 <= probability <= 1.0:
            raise ValueError(f"probability must lie in [0, 1], got {probability}")
        kwargs.setdefault("dtype", "float32")  # pictures keep their bits under a mixed-precision policy
        # KerasCV takes seeds None and 0 for the global generator, which deterministic TensorFlow refuses to make.
        super().__init__(seed=1, **kwargs)
        self.built = True  # no weights; Keras warns of unbuilt layers inside others
        self.probability = float(probability)
        self.seed = seed
        plain_seed = int.from_bytes(os.urandom(4), "little") if seed is None else seed
        self._random_generator = tf.random.Generator.from_seed(plain_seed)

    @property
    def num_draws(self) -> int:
        """Uniform numbers per example that `transform` reads."""
        return 1 + self.parameter_draws

    def apply(self, images: tf.Tensor, labels: tf.Tensor, draws: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        """Transform every example; draws: float32 [B, parameter_draws]."""
        raise NotImplementedError(f"{type(self).__name__} must implement apply()")

    def transform(self, images: tf.Tensor, labels: tf.Tensor, draws: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        """Augment a batch; a pure function.

        Args:
            images: float32 [B, H, W, 3] in [0, 255]; H and W known when traced.
            labels: float32 [B, C], soft (rows sum to 1).
            draws: float32 [B, num_draws], uniform in [0, 1).

        Returns:
            Images and labels of the same shapes and ranges.
        """
        if self.probability == 1.0:
            return self.apply(images, labels, draws[:, 1:])
        images = settled(images)
        new_images, new_labels = self.apply(images, labels, draws[:, 1:])
        chosen = self.chosen(draws)
        images = from_rows(tf.where(chosen[:, None, None], rows(settled(new_images)), rows(images)))
        if self.mixes_labels:
            labels = tf.where(chosen[:, None], new_labels, labels)
        return images, labels

    def chosen(self, draws: tf.Tensor) -> tf.Tensor:
        """Which examples the layer is applied to: bool [B]; draws: float32 [B, num_draws]."""
        return draws[:, 0] < self.probability

    # What KerasCV's base class calls in a plain call.

    def get_random_transformation_batch(self, batch_size: tf.Tensor, **kwargs: Any) -> dict[str, tf.Tensor]:
        return {"draws": self._random_generator.uniform((batch_size, self.num_draws))}

    def augment_images(self, images: tf.Tensor, transformations: dict[str, tf.Tensor], **kwargs: Any) -> tf.Tensor:
        no_labels = tf.zeros((tf.shape(images)[0], 1))
        return self.transform(images, no_labels, transformations["draws"])[0]

    def augment_labels(
        self, labels: tf.Tensor, transformations: dict[str, tf.Tensor], raw_images: tf.Tensor, **kwargs: Any
    ) -> tf.Tensor:
        if not self.mixes_labels:
            return labels
        return self.transform(raw_images, labels, transformations["draws"])[1]

    def get_config(self) -> dict[str, Any]:
        return {**super().get_config(), "probability": self.probability, "seed": self.seed}


def as_range(value: Range, name: str) -> tuple[float, float]:
    """A (low, high) pair; one number v means (-v, v). ValueError if it is not a pair in ascending order."""
    pair = (-value, value) if isinstance(value, int | float) else tuple(value)
    if len(pair) != 2 or pair[0] > pair[1]:
        raise ValueError(f"{name} must be a number >= 0 or an ascending pair (low, high), got {value!r}")
    return float(pair[0]), float(pair[1])


def in_range(uniforms: tf.Tensor, bounds: tuple[float, float]) -> tf.Tensor:
    """Map uniform numbers of [0, 1) to [low, high); exactly low where the bounds are equal."""
    low, high = bounds
    return low + (high - low) * uniforms


def per_pixel(values: tf.Tensor) -> tf.Tensor:
    """[B] -> [B, 1, 1, 1], to combine a number per example with its picture."""
    return values[:, None, None, None]
