"""Layers that blank out parts of pictures: a grid of squares (GridMask) and one rectangle (Cutout)."""

import math
from typing import Any

import keras
import tensorflow as tf

from bloodcell_dist.augment.base import Range, StatelessAugmentation, as_range, in_range
from bloodcell_dist.augment.geometry import turns_to_radians
from bloodcell_dist.augment.layout import picture_size, settled


def rectangle_sides(centres: tf.Tensor, lengths: tf.Tensor, size: int) -> tf.Tensor:
    """Which of `size` pixels lie within `lengths` about `centres`: whole numbers float32 [B] -> bool [B, size]."""
    pixels = tf.range(size, dtype=tf.float32)[None, :]
    start = (centres - 0.5 * lengths)[:, None]
    return (pixels >= start) & (pixels < start + lengths[:, None])


class _Erase(StatelessAugmentation):
    """Fill the pixels of `mask` with one value."""

    def __init__(self, fill_value: float = 0.0, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.fill_value = float(fill_value)

    def mask(self, draws: tf.Tensor, height: int, width: int) -> tf.Tensor:
        """The pixels to blank out, bool [B, H, W]."""
        raise NotImplementedError

    def apply(self, images: tf.Tensor, labels: tf.Tensor, draws: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        mask = settled(tf.cast(self.mask(draws, *picture_size(images)), tf.uint8))  # once per pixel, not per channel
        return tf.where(mask[..., None] > 0, self.fill_value, images), labels

    def get_config(self) -> dict[str, Any]:
        return {**super().get_config(), "fill_value": self.fill_value}


@keras.saving.register_keras_serializable(package="bloodcell_dist")
class GridMask(_Erase):
    """GridMask (arXiv 2001.04086) with KerasCV's parameters, computed per pixel instead of by rotating a mask."""

    parameter_draws = 5

    def __init__(
        self,
        ratio_factor: tuple[float, float] = (0.0, 0.5),
        rotation_factor: Range = 0.15,
        **kwargs: Any,
    ) -> None:
        """
        Args:
            ratio_factor: (low, high) side of the squares, as a share of the grid's period.
            rotation_factor: of the grid, fractions of a full turn.
        """
        super().__init__(**kwargs)
        self.ratio_factor = as_range(ratio_factor, "ratio_factor")
        self.rotation_factor = as_range(rotation_factor, "rotation_factor")

    def mask(self, draws: tf.Tensor, height: int, width: int) -> tf.Tensor:
        ratio, period, shift_x, shift_y, rotation = (draw[:, None, None] for draw in tf.unstack(draws, axis=1))
        sides = sorted((0.5 * height, 0.3 * width))
        period = in_range(period, (sides[0], sides[1] + 1.0))
        hole = in_range(ratio, self.ratio_factor) * period
        x, y = self._grid_places(in_range(rotation, self.rotation_factor), height, width)
        in_column = _phase(x + shift_x * period, period) >= period - hole
        in_row = _phase(y + shift_y * period, period) >= period - hole
        return in_column & in_row

    def _grid_places(self, turns: tf.Tensor, height: int, width: int) -> tuple[tf.Tensor, tf.Tensor]:
        """Every pixel's place in the unrotated grid, whose square canvas is as wide as the picture's diagonal."""
        canvas = math.ceil(math.hypot(height, width))
        middle = (canvas - 1) / 2
        x = (tf.range(width, dtype=tf.float32) + ((canvas - width) // 2 - middle))[None, None, :]
        y = (tf.range(height, dtype=tf.float32) + ((canvas - height) // 2 - middle))[None, :, None]
        angle = turns_to_radians(turns)
        cosine, sine = tf.cos(angle), tf.sin(angle)
        return cosine * x - sine * y + middle, sine * x + cosine * y + middle

    def get_config(self) -> dict[str, Any]:
        own = {"ratio_factor": self.ratio_factor, "rotation_factor": self.rotation_factor}
        return {**super().get_config(), **own}


@keras.saving.register_keras_serializable(package="bloodcell_dist")
class RandomCutout(_Erase):
    """Blank out one rectangle per picture (Cutout, arXiv 1708.04552); its centre is any pixel."""

    parameter_draws = 4

    def __init__(self, height_factor: tuple[float, float], width_factor: tuple[float, float], **kwargs: Any) -> None:
        """height_factor, width_factor: (low, high) shares of the picture's height and width."""
        super().__init__(**kwargs)
        self.height_factor = as_range(height_factor, "height_factor")
        self.width_factor = as_range(width_factor, "width_factor")

    def mask(self, draws: tf.Tensor, height: int, width: int) -> tf.Tensor:
        centre_x, centre_y, share_y, share_x = tf.unstack(draws, axis=1)
        length_y = tf.math.ceil(height * in_range(share_y, self.height_factor))
        length_x = tf.math.ceil(width * in_range(share_x, self.width_factor))
        rows = rectangle_sides(tf.floor(height * centre_y), length_y, height)
        columns = rectangle_sides(tf.floor(width * centre_x), length_x, width)
        return rows[:, :, None] & columns[:, None, :]

    def get_config(self) -> dict[str, Any]:
        own = {"height_factor": self.height_factor, "width_factor": self.width_factor}
        return {**super().get_config(), **own}


def _phase(place: tf.Tensor, period: tf.Tensor) -> tf.Tensor:
    return place - period * tf.floor(place / period)
