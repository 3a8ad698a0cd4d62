"""Geometric layers: what they share, and the random affine map."""

from typing import Any

import keras
import tensorflow as tf

from bloodcell_dist.augment import geometry
from bloodcell_dist.augment.base import Range, StatelessAugmentation, as_range, in_range
from bloodcell_dist.augment.geometry import Affine
from bloodcell_dist.augment.layout import picture_size


class GeometricAugmentation(StatelessAugmentation):
    """A layer that may change colours and then moves pixels by one affine map per example.

    Subclasses implement `affine` and, if they change colours, set `recolours` and implement `recolour`.
    """

    recolours: bool = False

    def __init__(self, fill_mode: str = "reflect", fill_value: float = 0.0, **kwargs: Any) -> None:
        """fill_mode, fill_value: what lies outside the picture, see `geometry.warp`."""
        if fill_mode not in geometry.FILL_MODES:
            raise ValueError(f"fill_mode must be one of {', '.join(geometry.FILL_MODES)}, got {fill_mode!r}")
        super().__init__(**kwargs)
        self.fill_mode = fill_mode
        self.fill_value = float(fill_value)

    def affine(self, draws: tf.Tensor, height: int, width: int) -> Affine:
        """The map of every example; draws: float32 [B, parameter_draws]."""
        raise NotImplementedError(f"{type(self).__name__} must implement affine()")

    def recolour(self, images: tf.Tensor, draws: tf.Tensor) -> tf.Tensor:
        """Change colours before the map; draws: float32 [B, parameter_draws]."""
        return images

    def chosen_affine(self, draws: tf.Tensor, height: int, width: int) -> Affine:
        """`affine` where the example is chosen, identity elsewhere; draws: float32 [B, num_draws]."""
        affine = self.affine(draws[:, 1:], height, width)
        if self.probability == 1.0:
            return affine
        return geometry.select(self.chosen(draws), affine, geometry.identity(draws[:, 0]))

    def chosen_recolour(self, images: tf.Tensor, draws: tf.Tensor) -> tf.Tensor:
        """`recolour` where the example is chosen; draws: float32 [B, num_draws]."""
        recoloured = self.recolour(images, draws[:, 1:])
        if self.probability == 1.0 or not self.recolours:
            return recoloured
        return tf.where(self.chosen(draws)[:, None, None, None], recoloured, images)

    def transform(self, images: tf.Tensor, labels: tf.Tensor, draws: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        affine = self.chosen_affine(draws, *picture_size(images))
        images = self.chosen_recolour(images, draws)
        return geometry.warp(images, affine, self.fill_mode, self.fill_value), labels

    def get_config(self) -> dict[str, Any]:
        return {**super().get_config(), "fill_mode": self.fill_mode, "fill_value": self.fill_value}


@keras.saving.register_keras_serializable(package="bloodcell_dist")
class RandomAffine(GeometricAugmentation):
    """Flip, quarter turns, rotation, shear, zoom and translation, in this order, in one resampling.

    Units and signs are KerasCV's, but shear keeps the centre (KerasCV's keeps the upper left corner, which pushes the
    cell out of the picture). A range is a pair (low, high), or one number v for (-v, v).
    """

    parameter_draws = 9

    def __init__(
        self,
        flip_horizontal: float = 0.0,
        flip_vertical: float = 0.0,
        right_angles: bool = False,
        rotation: Range = 0.0,
        shear_x: Range = 0.0,
        shear_y: Range = 0.0,
        zoom: Range = 0.0,
        translate_x: Range = 0.0,
        translate_y: Range = 0.0,
        **kwargs: Any,
    ) -> None:
        """
        Args:
            flip_horizontal, flip_vertical: probability of a left-right and of an up-down flip.
            right_angles: rotate by 0, 90, 180 or 270 degrees, each as likely.
            rotation: fractions of a full turn, positive counter-clockwise.
            shear_x, shear_y: pixels per pixel.
            zoom: added to 1; positive zooms out.
            translate_x, translate_y: fractions of width and height, positive to the right and down.
        """
        super().__init__(**kwargs)
        self.flip_horizontal, self.flip_vertical = float(flip_horizontal), float(flip_vertical)
        self.right_angles = right_angles
        self.ranges = {
            "rotation": as_range(rotation, "rotation"),
            "shear_x": as_range(shear_x, "shear_x"),
            "shear_y": as_range(shear_y, "shear_y"),
            "zoom": as_range(zoom, "zoom"),
            "translate_x": as_range(translate_x, "translate_x"),
            "translate_y": as_range(translate_y, "translate_y"),
        }
        if self.ranges["zoom"][0] <= -1.0:
            raise ValueError(f"zoom must be above -1, got {zoom!r}")

    def affine(self, draws: tf.Tensor, height: int, width: int) -> Affine:
        flip_x, flip_y, quarter, *rest = tf.unstack(draws, axis=1)
        value = {name: in_range(draw, bounds) for draw, (name, bounds) in zip(rest, self.ranges.items(), strict=True)}
        zoom = 1.0 + value["zoom"]
        steps = [
            geometry.scale(_sign(flip_x < self.flip_horizontal), _sign(flip_y < self.flip_vertical)),
            geometry.rotation(geometry.turns_to_radians(value["rotation"])),
            geometry.shear(value["shear_x"], value["shear_y"]),
            geometry.scale(zoom, zoom),
            geometry.translation(width * value["translate_x"], height * value["translate_y"]),
        ]
        if self.right_angles:
            steps.insert(1, geometry.right_angle_rotation(tf.floor(4.0 * quarter)))
        return geometry.chain(steps)

    def get_config(self) -> dict[str, Any]:
        own = {
            "flip_horizontal": self.flip_horizontal,
            "flip_vertical": self.flip_vertical,
            "right_angles": self.right_angles,
        }
        return {**super().get_config(), **own, **self.ranges}


def _sign(flipped: tf.Tensor) -> tf.Tensor:
    return tf.where(flipped, -1.0, 1.0)
