"""Stain jitter: the amounts of the dyes in a picture vary, as between laboratories and days."""

from typing import Any

import keras
import numpy as np
import tensorflow as tf

from bloodcell_dist.augment.base import Range, StatelessAugmentation, as_range, in_range
from bloodcell_dist.augment.colour import clip
from bloodcell_dist.augment.layout import from_rows, rows, settled

# Optical density of red, green and blue per unit of haematoxylin, eosin and a brown residual (DAB): Ruifrok and
# Johnston, "Quantification of histochemical staining by color deconvolution", 2001. A blood smear's azure B and eosin Y
# lie near the first two; jitter needs axes along which stains differ, not an exact separation.
_DYES = np.array([[0.65, 0.70, 0.29], [0.07, 0.99, 0.11], [0.27, 0.57, 0.78]])
DYES = _DYES / np.linalg.norm(_DYES, axis=1, keepdims=True)


def jitter_stain(images: tf.Tensor, gains: tf.Tensor, offsets: tf.Tensor) -> tf.Tensor:
    """Multiply the amounts of the three dyes by `gains` and add `offsets`, in optical density (natural logarithm).

    Deconvolution, jitter and reconvolution are one affine map of a pixel's optical densities. Gains of 1 and offsets of
    0 give the picture back to within rounding.

    Args:
        images: float32 [B, H, W, 3] in [0, 255].
        gains, offsets: float32 [B, 3], in the order haematoxylin, eosin, residual.
    """
    dyes, unmix = tf.constant(DYES, tf.float32), np.linalg.inv(DYES).astype(np.float32)
    mix = tf.reduce_sum(unmix[None, :, :, None] * gains[:, None, :, None] * dyes[None, None], axis=2)
    shift = tf.reduce_sum(offsets[:, :, None] * dyes[None], axis=1)
    logs = from_rows(tf.math.log(rows(images) + 1.0))  # of at least 1: black is not infinitely dark
    white = float(np.log(256.0))
    mixed = [mix[:, None, None, channel] * (logs[..., channel : channel + 1] - white) for channel in range(3)]
    logs = settled(tf.maximum(tf.add_n(mixed) + (white - shift)[:, None, None], 0.0))
    return from_rows(clip(tf.exp(rows(logs)) - 1.0))


@keras.saving.register_keras_serializable(package="bloodcell_dist")
class RandomStain(StatelessAugmentation):
    """HED jitter as Tellez et al. (arXiv 1808.05896 and 1902.06543), each dye by its own gain and offset."""

    parameter_draws = 6

    def __init__(self, gain: Range = 0.05, offset: Range = 0.05, **kwargs: Any) -> None:
        """
        Args:
            gain: added to 1, of each dye's amount; one number v means (-v, v). Tellez et al.: 0.05 light, 0.2 strong.
            offset: added to each dye's amount, in optical density; 0.1 darkens white by 10 %.
        """
        super().__init__(**kwargs)
        self.gain, self.offset = as_range(gain, "gain"), as_range(offset, "offset")

    def apply(self, images: tf.Tensor, labels: tf.Tensor, draws: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        gains = 1.0 + in_range(draws[:, :3], self.gain)
        return jitter_stain(images, gains, in_range(draws[:, 3:], self.offset)), labels

    def get_config(self) -> dict[str, Any]:
        return {**super().get_config(), "gain": self.gain, "offset": self.offset}
