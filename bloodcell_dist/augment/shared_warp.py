"""Several layers in one resampling."""

from collections.abc import Sequence
from typing import Any

import keras
import tensorflow as tf

from bloodcell_dist.augment import geometry
from bloodcell_dist.augment.affine import GeometricAugmentation
from bloodcell_dist.augment.base import StatelessAugmentation
from bloodcell_dist.augment.layout import picture_size


@keras.saving.register_keras_serializable(package="bloodcell_dist")
class SharedWarp(StatelessAugmentation):
    """Geometric and colour layers with all moves joined in one resampling at the end.

    Faster, and sharper than to interpolate repeatedly. Colours change first, in the layers' order; that commutes with
    moving pixels but for interpolation and for means over reflected borders.
    """

    def __init__(
        self,
        layers: Sequence[StatelessAugmentation],
        fill_mode: str = "reflect",
        fill_value: float = 0.0,
        **kwargs: Any,
    ) -> None:
        """
        Args:
            layers: geometric layers, whose own fill modes are not used, and colour layers.
            fill_mode, fill_value: what lies outside the picture, see `geometry.warp`.
        """
        super().__init__(**kwargs)
        self.layers = list(layers)
        self.fill_mode = fill_mode
        self.fill_value = float(fill_value)
        self.parameter_draws = sum(layer.num_draws for layer in self.layers)
        self.group_size = max((layer.group_size for layer in self.layers), default=1)
        self.mixes_labels = any(layer.mixes_labels for layer in self.layers)

    def apply(self, images: tf.Tensor, labels: tf.Tensor, draws: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        size = picture_size(images)
        maps = []
        for layer, part in zip(self.layers, self._split(draws), strict=True):
            if isinstance(layer, GeometricAugmentation):
                images = layer.chosen_recolour(images, part)
                maps.append(layer.chosen_affine(part, *size))
            else:
                images, labels = layer.transform(images, labels, part)
        return geometry.warp(images, geometry.chain(maps), self.fill_mode, self.fill_value), labels

    def _split(self, draws: tf.Tensor) -> list[tf.Tensor]:
        return tf.split(draws, [layer.num_draws for layer in self.layers], axis=1)

    def get_config(self) -> dict[str, Any]:
        layers = [keras.saving.serialize_keras_object(layer) for layer in self.layers]
        own = {"layers": layers, "fill_mode": self.fill_mode, "fill_value": self.fill_value}
        return {**super().get_config(), **own}

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> "SharedWarp":
        layers = [keras.saving.deserialize_keras_object(layer) for layer in config["layers"]]
        return cls(**{**config, "layers": layers})
