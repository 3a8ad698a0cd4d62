"""The same policies made of stock KerasCV layers, for reference (`engine: kerascv`)."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import tensorflow as tf

from bloodcell_dist.imports import put_off

with put_off():
    import keras_cv


@dataclass(frozen=True)
class StockPolicy:
    """Stock KerasCV layers in order, with the signature of `FusedPolicy`.

    Not compilable (most of these layers use operations that XLA lacks), and not repeatable: the layers draw from
    TensorFlow's global generators, which no checkpoint restores, so seed, step and positions have no effect and a
    resumed run is not bit-identical. With deterministic operations switched on KerasCV refuses to build the layers.

    Attributes:
        deterministic: False.
    """

    name: str
    layers: tuple[Any, ...]
    deterministic: bool = False
    group_size: int = 1

    def __call__(
        self, images: tf.Tensor, labels: tf.Tensor, seed: int, step: tf.Tensor, positions: tf.Tensor
    ) -> tuple[tf.Tensor, tf.Tensor]:
        """Augment a batch inside a tf.function without jit_compile; arguments and results as `FusedPolicy`."""
        batch = {"images": tf.cast(images, tf.float32), "labels": tf.cast(labels, tf.float32)}
        for layer in self.layers:
            batch = layer(batch)
        return (
            tf.clip_by_value(tf.ensure_shape(batch["images"], images.shape), 0.0, 255.0),
            tf.ensure_shape(batch["labels"], labels.shape),
        )


def layers(name: str, magnitude: float) -> tuple[Any, ...]:
    """Stock counterparts of the layers of the fused policy `name`, at the same strengths."""
    strength = magnitude / 0.5
    recipes = {
        "none": lambda: (),
        "light": lambda: _light(strength),
        "seed": lambda: _seed(magnitude, strength),
        "robust": lambda: _robust(magnitude, strength),
    }
    return recipes[name]()


def _light(strength: float) -> tuple[Any, ...]:
    layers = keras_cv.layers
    return (
        layers.RandomFlip("horizontal_and_vertical"),
        layers.RandomRotation(0.5),
        layers.RandomShear(0.05 * strength, 0.05 * strength),
        layers.RandomZoom(0.1 * strength),
        layers.RandomTranslation(0.05 * strength, 0.05 * strength),
        layers.RandomBrightness(0.08 * strength),
        layers.RandomContrast((0, 255), 0.1 * strength),
        layers.RandomSaturation((0.5 - 0.05 * strength, 0.5 + 0.05 * strength)),
        layers.RandomHue(0.03 * strength, (0, 255)),
    )


def _seed(magnitude: float, strength: float) -> tuple[Any, ...]:
    layers = keras_cv.layers
    mixers = [layers.CutMix(), layers.MixUp(), layers.FourierMix()]
    nothing = layers.RandomBrightness(0.0)  # KerasCV has no identity layer
    return (
        layers.RandomChoice([*mixers, nothing], batchwise=True),
        layers.RandAugment((0, 255), augmentations_per_image=3, magnitude=magnitude),
        layers.RandomFlip("horizontal_and_vertical"),
        layers.RandomRotation(0.5),
        layers.RandomZoom(0.15 * strength),
        layers.RandomSaturation((0.5 - 0.2 * strength, 0.5 + 0.2 * strength)),
        layers.RandomHue(0.2 * strength, (0, 255)),
        layers.GridMask((0.0, min(magnitude, 0.7))),
    )


def _robust(magnitude: float, strength: float) -> tuple[Any, ...]:
    """As far as KerasCV goes: saturation and hue in place of stain, neither uneven illumination nor noise."""
    layers = keras_cv.layers

    def often(layer: Any, share: float) -> Any:
        return layers.RandomAugmentationPipeline([layer], augmentations_per_image=1, rate=share)

    return (
        often(layers.RandomSaturation((0.5 - 0.05 * strength, 0.5 + 0.05 * strength)), 0.8),
        often(layers.RandomHue(0.05 * strength, (0, 255)), 0.8),
        often(layers.RandomBrightness(0.1 * strength), 0.5),
        often(layers.RandomContrast((0, 255), 0.15 * strength), 0.5),
        layers.RandomFlip("horizontal_and_vertical"),
        layers.RandomRotation(0.5),
        layers.RandomShear(0.05 * strength, 0.05 * strength),
        layers.RandomZoom(0.1 * strength),
        layers.RandomTranslation(0.05 * strength, 0.05 * strength),
        often(layers.RandomGaussianBlur(7, (0.3 * strength, 1.0 * strength)), 0.3),
        often(layers.RandomSharpness(min(0.8 * strength, 1.0), (0, 255)), 0.3),
        of_unit_range(often(layers.RandomJpegQuality((round(100 - 60 * magnitude), round(100 - 10 * magnitude))), 0.3)),
    )


def of_unit_range(layer: Any) -> Callable[[dict[str, tf.Tensor]], dict[str, tf.Tensor]]:
    """A layer that takes pictures in [0, 1] for those in [0, 255]: RandomJpegQuality would turn them white."""

    def call(batch: dict[str, tf.Tensor]) -> dict[str, tf.Tensor]:
        changed = layer({**batch, "images": batch["images"] / 255.0})
        return {**changed, "images": 255.0 * changed["images"]}

    return call
